"""python -m drnet_jax.benchmark, the same as `drnet benchmark`."""

import sys

if __name__ == "__main__":
    from drnet_jax.commands import main

    main(["drnet", "benchmark", *sys.argv[1:]])
