from google.protobuf.json_format import Parse

from phosphene.client.canonical import to_json
from phosphene.v1.values_pb2 import NeuronName


def test_no_text_of_an_answer_gives_a_terminal_orders() -> None:
    name = NeuronName(name="red\x9b31m \x7f\x85 \x1b[2J é")
    text = to_json(name)
    assert all(character == "\n" or character.isprintable() for character in text)
    assert r"red\u009b31m \u007f\u0085 \u001b[2J é" in text
    assert Parse(text, NeuronName()) == name
