"""What each ratio of compression costs in accuracy, on real data, against what one would pick instead.

python -m experiments run                            # what experiments/fashion.toml asks for and is not there yet
python -m experiments run --list                     # which of it is there
python -m experiments report -o docs/results         # tables and plots from the results
"""
