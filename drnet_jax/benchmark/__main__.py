"""python -m drnet_jax.benchmark, the same as `drnet benchmark`."""

import sys

from drnet_jax.commands import main

if __name__ == "__main__":
    main(["drnet", "benchmark", *sys.argv[1:]])
