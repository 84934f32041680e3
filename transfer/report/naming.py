"""Display names: methods, tasks, metrics, fractions of the labels."""

from typing import Final

from carryover.transfer.results.record import Metric

RANDOM: Final = "random"
SUPERVISED: Final = "supervised"
BASELINES: Final = (RANDOM, SUPERVISED)

_METHODS = {
    RANDOM: "Random initialization",
    SUPERVISED: "Supervised",
    "unigrad": "UniGrad",
    "simo": "SiMo",
    "sqrtkl": "SqrtKL",
    "npid": "NPID",
    "moco": "MoCo",
    "moco_v2": "MoCo v2",
    "simclr": "SimCLR",
    "simsiam": "SimSiam",
    "byol": "BYOL",
    "directpred": "DirectPred",
    "barlow_twins": "Barlow Twins",
    "vicreg": "VICReg",
    "msbreg": "MSBReg",
    "swav": "SwAV",
    "dino": "DINO",
    "twist": "TWIST",
    "obow": "OBoW",
    "seed": "SEED",
    "cpc_v2": "CPC v2",
    "cmc": "CMC",
    "infomin": "InfoMin Aug.",
    "pirl": "PIRL",
    "pid": "PID",
    "jigclu": "JigClu",
}
_TASKS = {
    "finetune": "Fine-tuning",
    "linear": "Linear evaluation",
    "linear_cached": "Linear evaluation of cached features",
    "attentive": "Attentive probe",
    "knn": "k-nearest neighbors",
    "svm": "SVM on frozen features",
    "detection": "Detection and instance segmentation",
    "segmentation": "Semantic segmentation",
    "tsne": "t-SNE",
}
# Their numbers say how faithful a picture is, and nothing of what was pretrained.
PICTURES: Final = ("tsne",)
_METRICS = {"top1": "Top 1", "top5": "Top 5", "miou": "mIoU", "map": "mAP"}
# The columns of the papers' own tables (UniGrad Tables 8 and 11); the rest is in a table of its own.
_HEADLINES = {
    "detection": ("AP", "AP50", "AP75", "mask AP", "mask AP50", "mask AP75"),
    "finetune": ("top1", "top5"),
    "linear": ("top1", "top5"),
    "linear_cached": ("top1", "top5"),
    "attentive": ("top1", "top5"),
}
_MOST_HEADLINES = 4


def method_name(method: str) -> str:
    """Return the method's usual spelling, or what the record says where we know no other."""
    return _METHODS.get(method, method)


def task_name(task: str) -> str:
    """Return the heading of a task's tables."""
    return _TASKS.get(task, task)


def task_order(task: str) -> tuple[int, str]:
    """Return a sort key: the tasks in the order of the papers, then others by name."""
    return (list(_TASKS).index(task) if task in _TASKS else len(_TASKS), task)


def metric_name(metric: Metric) -> str:
    """Return a metric's column heading: ``Top 1, k 20, T 0.07``; of a mask's AP ``AP``, under "mask"."""
    settings = (f"{k} {v:g}" for k, v in metric.params.items() if not isinstance(v, str))
    return ", ".join([_METRICS.get(metric.name, metric.name), *settings])


def headline_metrics(task: str, metrics: list[str]) -> list[str]:
    """Return those of an evaluation's metrics that belong in the combined table, in the papers' order."""
    known = [m for m in _HEADLINES.get(task, ()) if m in metrics]
    return known or metrics[:_MOST_HEADLINES]


def share(fraction: float) -> str:
    """Return a share of the labels as a percentage: ``1 %``, ``10 %``, ``0.5 %``."""
    return f"{round(100 * fraction, 1):g} %"
