"""What must hold when a compressed model learns the same batch by heart as its dense twin.

Both take the same steps at the same rate, so that wrong initial values show.
"""


def assert_keeps_up(dense, compressed, fall=0.5, behind=0.25):
    """Check the losses of a dense and of a compressed model, each as it starts and as it ends.

    The loss of the dense model falls below the share ``fall``, else the task tells nothing. The compressed one starts
    from no more than 1.5 times the loss, and at the end the share ``behind`` of the way is left at most.
    """
    (start, end), (first, last) = dense, compressed
    assert end < fall * start, f"the dense model does not learn: its loss goes from {start:.3f} to {end:.3f}"
    assert first < 1.5 * start, f"the loss starts from {first:.3f}, that of the dense model from {start:.3f}"
    reached = end + behind * (start - end)
    assert last < reached, f"the loss ends at {last:.3f}; that of the dense model goes from {start:.3f} to {end:.3f}"
