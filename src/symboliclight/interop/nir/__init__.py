"""NIR (the Neuromorphic Intermediate Representation, doi.org/10.1038/s41467-024-52259-9): export, executor, readers.

A folder holds `.nir` graphs, the tensors of the nodes that NIR has no word for (host nodes), and `manifest.json`, which
names them all, in order, with the signals that pass between them.

    build.py      a model's tensors -> parts (NIR graphs) and host nodes; needs no torch
    files.py      the folder, written and read; refuses what it cannot hold or does not know
    executor.py   runs a folder event by event, in NumPy; imports no model code
    hosts.py      the host nodes' equations
    dialects.py   the parts as one other package reads them
    readers.py    spike trains of other packages beside the executor's
"""
