from src.data.splits import Split


class Records(list[dict], Split):
    """A split in memory."""
