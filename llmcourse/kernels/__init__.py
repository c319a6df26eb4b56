"""Native code that is built on the reader's machine: see `cpu`."""
