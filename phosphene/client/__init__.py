"""Talks to a Phosphene service: `Client`, `AsyncClient`, the `phosphene` command, pages for a browser.

    from phosphene.client import Client

    with Client("127.0.0.1:50051") as client:
        answer = client.explain("photo.jpg", parts=["neurons", "fidelity", "top_images"], top_n=5)
        for active in answer.neurons:
            print(active.neuron.neuron_id, active.neuron.name.name, active.activation)
        for position, outcome in client.explain_images(["a.jpg", "b.jpg"], parts=["neurons"]):
            print(position, outcome)

Answers are the messages of `phosphene.v1`, each field of which proto/phosphene/v1 describes; failures are
`phosphene.errors`. Imports phosphene.v1, phosphene.errors, grpc and rich, and nothing else of the kernel: no torch.
"""

from phosphene.client.admin import AdminClient
from phosphene.client.asynchronous import AsyncClient
from phosphene.client.canonical import to_json
from phosphene.client.page import explanation_page, neuron_page
from phosphene.client.questions import Digest
from phosphene.client.sync import Client
from phosphene.errors import StreamBroken

__all__ = [
    "AdminClient",
    "AsyncClient",
    "Client",
    "Digest",
    "StreamBroken",
    "explanation_page",
    "neuron_page",
    "to_json",
]
