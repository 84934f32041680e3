#!/usr/bin/env bash
# safetensors 0.8.0 (PyPI): the same tensors with the same metadata, saved by many processes.
#
# Guess, written down before it was run: the file is a function of its content, so that its SHA-256 can name a checkpoint.
# Seen: with one metadata key one digest; with two keys two digests. The header's
#   "__metadata__" is written in the order of a hash map that is seeded anew in every process.
# So: never compare checkpoints by the digest of a safetensors file that was written twice; sort the header, or hash the
#   tensors.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cat > "$folder/save.py" <<'PY'
import hashlib
import sys

import numpy
from safetensors.numpy import save

metadata = {key: f"value of {key}" for key in sys.argv[1:]}
print(hashlib.sha256(save({"weight": numpy.arange(6.0)}, metadata=metadata)).hexdigest()[:16])
PY
digests() { for _ in $(seq 40); do "$folder/env/bin/python" "$folder/save.py" "$@"; done | sort | uniq -c; }
one=$(digests maker) two=$(digests maker format)
printf 'one metadata key, 40 processes (times, digest):\n%s\ntwo metadata keys, 40 processes:\n%s\n' "$one" "$two"
[ "$(wc -l <<<"$one")" = 1 ] || { echo "changed: one key no longer gives one digest"; exit 1; }
[ "$(wc -l <<<"$two")" = 2 ] || { echo "changed: two keys no longer give two digests"; exit 1; }
echo "as found: two files of one content"
