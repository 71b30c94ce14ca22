"""What would stop or slow a run on these machines: facts are gathered on every rank, then judged.

facts    what one rank sees, as data
checks   judge the facts of one rank
across   judge those of all ranks beside each other
talk     how the ranks hear each other: clocks, an all-reduce
report   what is printed
"""
