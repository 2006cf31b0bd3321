"""Late denoising steps as a share of all steps, so that a setting means the same for 20 and for 40 steps."""


def late(num_steps: int, share: float) -> int:
    """The number of steps in the last `share` of `num_steps`, at least 1."""
    return max(1, round(share * num_steps))
