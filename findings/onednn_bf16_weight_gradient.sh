#!/usr/bin/env bash
# torch 2.14.1 (PyPI) on a CPU with AVX-512: the weight gradient of a convolution in bf16 on a map smaller than its kernel.
#
# Guess, written down before it was run: in bf16 a gradient is float64's to within rounding (a relative error of 0.005), on every
#   size of map; so a convolution of one's own can be tested against it.
# Seen: for 3 x 3, stride 2, padding 1 on a map of 1 x 1 the error is nan or above 1, run after run. The rows and columns of the
#   kernel that meet only the border at every pixel get no gradient written: what stands there is what the memory held before.
#   The output and the gradient of the input are right, and so are all three in fp32. 7 x 7 at stride 1 does the same.
# So: a network in bf16 on small images (a last stage at 1 x 1) can end with nan without any fault of its own; cut away the parts
#   of the kernel that meet no pixel, whose gradient is 0.
set -euo pipefail
grep -qw avx512_bf16 /proc/cpuinfo || { echo "not shown: this CPU has no AVX512_BF16"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cat > "$folder/gradient.py" <<'PY'
import torch
from torch.nn.functional import conv2d


def error(kernel: int, stride: int, side: int, dtype: torch.dtype) -> float:
    """Return the largest relative error of ten weight gradients; memory is used by other tensors in between."""
    worst = 0.0
    for seed in range(10):
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(8, 256, side, side, generator=random)
        weight = torch.randn(512, 256, kernel, kernel, generator=random) / 20
        gradients = []
        for t in (torch.float64, dtype):
            w = weight.to(dtype).to(t).requires_grad_()
            y = conv2d(x.to(dtype).to(t), w, None, stride, kernel // 2)
            gradients.append(torch.autograd.grad(y, w, torch.ones_like(y))[0].double())
            del y
            torch.full((512 * 256 * kernel * kernel * 2,), 7.0)
        exact, found = gradients
        relative = float((found - exact).norm() / exact.norm())
        worst = max(worst, relative if relative == relative else float("inf"))
    return worst


torch.set_num_threads(1)
for kernel, stride, side in ((3, 2, 1), (3, 2, 4), (3, 1, 4)):
    for dtype in (torch.float32, torch.bfloat16):
        right = error(kernel, stride, side, dtype) < 0.005
        print(f"{kernel} x {kernel}, stride {stride}, map {side} x {side}, {dtype}: {'right' if right else 'wrong'}")
PY
seen=$("$folder/env/bin/python" -W ignore "$folder/gradient.py")
echo "$seen"
expected="3 x 3, stride 2, map 1 x 1, torch.float32: right
3 x 3, stride 2, map 1 x 1, torch.bfloat16: wrong
3 x 3, stride 2, map 4 x 4, torch.float32: right
3 x 3, stride 2, map 4 x 4, torch.bfloat16: right
3 x 3, stride 1, map 4 x 4, torch.float32: right
3 x 3, stride 1, map 4 x 4, torch.bfloat16: right"
[ "$seen" = "$expected" ] || { echo "changed"; exit 1; }
echo "as found: in bf16 the gradient of what meets no pixel is not written"
