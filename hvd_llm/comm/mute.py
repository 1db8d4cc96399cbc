"""A rank that does its share and talks to nobody: what training takes, and learns, without communication."""

from hvd_llm.comm.solo import Solo


class Mute(Solo):
    """`rank` of `size`, of which each thinks that the others did as it does."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    def ranks(self, group):
        return (self.rank,)

    def broadcast_object(self, name, value):
        return value

    def gather_objects(self, name, value):
        return [value] * self.size
