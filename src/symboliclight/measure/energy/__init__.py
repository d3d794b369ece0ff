"""Energy of a token: from operation counts and published constants, and measured by the machine's own counters.

`parts`: what each part computes and moves; `constants`: picojoules with their source; `account`: both together;
`counters`: joules that RAPL or NVML measured.
"""
