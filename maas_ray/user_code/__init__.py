"""Code of the user's own: found on the import path, carried in artefacts, run under a name that holds its digest.

    my_tasks.py ──find──▶ SourceCode ──write──▶ task/source/<digest>/my_tasks.py  (in a dataset, and in a bundle)
                             └────────run as──▶ module `maas_own_<digest>.my_tasks`

`source` finds, carries and runs code. `trust` decides whose code may run. `binding` makes specs of classes in such
code travel between processes.
"""
