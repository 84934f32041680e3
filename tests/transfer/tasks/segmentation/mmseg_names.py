"""What mmsegmentation calls the tensors of our heads."""


def mmseg_name(name: str) -> str:
    """Return mmsegmentation's name of a head's tensor: FCN, UPerNet and the linear head."""
    head, _, rest = name.partition(".")
    head = {"classifier": "decode_head", "aux_classifier": "auxiliary_head"}[head]
    parts = rest.split(".")
    if parts[0] == "neck":
        return rest
    if parts[0] in ("psp_modules", "bottleneck", "lateral_convs", "fpn_convs", "fpn_bottleneck"):
        return ".".join([head, *parts[:-2], ("conv", "bn")[int(parts[-2])], parts[-1]])
    if parts[0] == "classifier":
        return f"{head}.conv_seg.{parts[-1]}"
    if parts[0] == "bn":
        return f"{head}.{rest}"
    block = f"convs.{parts[1]}" if parts[0] == "convs" else "conv_cat"
    return f"{head}.{block}.{('conv', 'bn')[int(parts[-2])]}.{parts[-1]}"
