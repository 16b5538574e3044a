"""DeepSpeed's fields that mean the same as a field of the spec."""

from maas_ray.training.deepspeed.document import FieldPath

SAME: dict[FieldPath, str] = {
    ("train_batch_size",): "batch_size",
    ("train_micro_batch_size_per_gpu",): "micro_batch_size",
    ("gradient_clipping",): "gradient_clipping",
    ("optimizer", "params", "lr"): "learning_rate",
    ("optimizer", "params", "weight_decay"): "weight_decay",
    ("optimizer", "params", "betas"): "betas",
    ("optimizer", "params", "eps"): "eps",
    ("scheduler", "params", "warmup_max_lr"): "learning_rate",
    ("scheduler", "params", "cycle_max_lr"): "learning_rate",
    ("scheduler", "params", "warmup_num_steps"): "warmup_steps",
}
"""DeepSpeed's field: the field of the spec."""

PRECISIONS = ("bf16", "fp16")
"""DeepSpeed's blocks for number formats. If neither is enabled, numbers are fp32."""

ADAM = ("lr", "betas", "eps", "weight_decay")
PARAMETERS: dict[str, dict[str, tuple[str, ...]]] = {
    "optimizer": {
        "adam": ADAM,
        "adamw": ADAM,
        "lamb": ADAM,
        "lion": ("lr", "betas", "weight_decay"),
        "adagrad": ("lr", "eps", "weight_decay"),
        "sgd": ("lr", "weight_decay"),
    },
    "scheduler": {
        "warmuplr": ("warmup_max_lr", "warmup_num_steps"),
        "warmupdecaylr": ("warmup_max_lr", "warmup_num_steps", "total_num_steps"),
        "warmupcosinelr": ("warmup_num_steps", "total_num_steps"),
        "onecycle": ("cycle_max_lr",),
        "lrrangetest": (),
    },
}
"""Parameters of the table that each optimizer and each scheduler has. One that is not listed is used as written."""
