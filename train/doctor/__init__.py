"""What would stop or slow a run on these machines: facts are gathered on every rank, then checked.

facts      what one rank sees, as data
checks     check the facts of one rank
across     compare those of all ranks
measure    clocks and an all-reduce, by messages between the ranks
report     what is printed
"""
