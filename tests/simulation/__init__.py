"""The whole system in one thread on a simulated clock: one seed is one run.

`world` is time, `cluster` the API server and its controllers without HTTP, `sources` git, `agents`
the processes under test, `trouble` what happens to all of them, `laws` what must hold at each step,
`runs` one run and what became of it. ``python -m simulation`` runs any number of seeds.
"""
