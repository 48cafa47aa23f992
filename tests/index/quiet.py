"""A progress that keeps what it is told, for tests to look at."""

from index.progress import Progress


class Notes(Progress):
    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.stages: list[str] = []
        self.encoded = 0

    def begin(self, title: str, total: int, done: int, unit: str) -> None:
        self.stages.append(title)

    def advance(self, count: int) -> None:
        if self.stages[-1] == "encode":
            self.encoded += count

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)
