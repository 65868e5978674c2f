"""What happens when things go wrong: hostile files, faults while saving, races, long runs, and packages as installed.

python -m trust fuzz --inputs 200000   # what a stranger's file may do
python -m trust faults --runs 500      # savers that are killed, full disks, folders that cannot be written
python -m trust soak --steps 20000     # a long training: memory, residencies, and going on from a checkpoint
python -m trust numerics               # inputs that are made to break the arithmetic, and sums in every order
python -m trust orders                 # hash seeds, and the frameworks imported in every order
python -m trust packages               # built, installed and used as a user would
python -m trust report -o docs/results/trust.md

Each command prints what it did, adds one line to ``trust/results/trust.jsonl``, and fails if something did not hold.
"""
