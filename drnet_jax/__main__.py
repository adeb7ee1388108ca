"""The commands, as `drnet` has them: python -m drnet_jax COMMAND [--FLAGS]."""

from drnet_jax.commands import main

if __name__ == "__main__":
    main()
