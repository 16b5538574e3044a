"""The configuration is read by DeepSpeed itself before any worker starts."""

import copy
import difflib
import logging
import os
from typing import Any

from maas_ray.errors import Problem, SpecError
from maas_ray.training.deepspeed import trial


def check_with_deepspeed(config: dict[str, Any]) -> None:
    """Let DeepSpeed read a resolved configuration, here rather than in every worker a minute later.

    Raises:
        SpecError: DeepSpeed refuses it, or a key is misspelt, which DeepSpeed would silently ignore.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would warn that it has to guess
    problems = [*_misspelt(config), *_refused(config)] or trial.problems_of(config)
    if problems:
        raise SpecError("train", problems)


def _misspelt(config: dict[str, Any]) -> list[Problem]:
    from deepspeed.runtime import constants

    known = {value for value in vars(constants).values() if isinstance(value, str)} | {"zero_optimization"}
    problems = []
    for key in sorted(config.keys() - known):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if near:
            text = f"deepspeed.{key}: DeepSpeed does not have this field; did you mean `{near[0]}`?"
            problems.append(Problem(text, "deepspeed_unknown_field"))
    return problems


def _refused(config: dict[str, Any]) -> list[Problem]:
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
    from pydantic import ValidationError

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed takes this process for the only worker.
    alone = {"train_batch_size": config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]}
    try:
        DeepSpeedConfig(copy.deepcopy(config) | alone)
    except ValidationError as error:
        return [
            Problem(
                f"deepspeed: {error.title}.{'.'.join(map(str, detail['loc']))}: {detail['msg']} "
                f"(found {detail['input']!r}).",
                "deepspeed_refused",
            )
            for detail in error.errors(include_url=False)
        ]
    except (DeepSpeedConfigError, AssertionError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [Problem(f"deepspeed: {str(error).strip() or repr(error)}", "deepspeed_refused")]
    return []
