"""Hosts: the processes of a run on several hosts, which begin, stop and fail together.

All meet before JAX is asked for devices. From then on they watch each other: one that fails says
why; when one is not heard of any more, or fails, all end. A request to stop is agreed on: all stop
after the same step.
"""
