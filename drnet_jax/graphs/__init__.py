"""Graphs: networks in the languages of other runtimes."""
