"""`python -m maas_ray.sample_data NAME [DIRECTORY]`; without a directory into `data`, where the specs look."""

import sys
from pathlib import Path

from maas_ray.errors import MaasError
from maas_ray.sample_data import SAMPLES


def main(arguments: list[str]) -> None:
    """Write a sample, or print the usage."""
    if not arguments or arguments[0] not in SAMPLES or len(arguments) > 2:
        known = "".join(f"\n  {name:<14} {write.__doc__}" for name, write in SAMPLES.items())
        sys.exit(f"usage: python -m maas_ray.sample_data NAME [DIRECTORY]{known}")
    directory = Path(*arguments[1:] or ["data"])
    directory.mkdir(parents=True, exist_ok=True)
    try:
        print(SAMPLES[arguments[0]](directory))
    except MaasError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
