"""The Python API: a cluster, its models, their answers. `import ditto` shows all of it."""
