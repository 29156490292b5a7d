"""The thinking rule as training sees it: every turn once, in the context in which it was sampled."""

from hypothesis import given
from hypothesis import strategies as st

from baleen.chat import Message, encode, segments, training_views
from baleen.chat.retention import last_user_index

CONVERSATIONS = st.lists(st.sampled_from(["user", "developer", "assistant", "system"]), max_size=10).map(
    lambda roles: [
        Message(role=role, content=f"c{place}.", reasoning_content=f"r{place}." if role == "assistant" else None)
        for place, role in enumerate(roles)
    ]
)


def test_a_new_view_begins_with_every_new_user_message():
    roles = ["system", "user", "assistant", "user", "user", "assistant", "user"]
    messages = [Message(role=role, content=str(place)) for place, role in enumerate(roles)]
    assert training_views(messages) == [messages[:3], messages[:6]]
    assert training_views(messages, thinking=False) == [messages[:6]]


@given(CONVERSATIONS, st.booleans())
def test_every_turn_is_sampled_once_over_all_views_with_its_reasoning_in_sight(messages, thinking):
    trained = "".join(
        piece.text
        for view in training_views(messages, thinking)
        for piece in segments(view, thinking=thinking)
        if piece.sampled
    )
    for message in messages:
        if message.role == "assistant":
            assert trained.count(message.content) == 1
            assert trained.count(message.reasoning_content) == int(thinking)


@given(CONVERSATIONS)
def test_the_prompt_of_a_trained_turn_is_the_text_that_was_served(messages):
    for view in training_views(messages):
        served = encode(view[: last_user_index(view) + 1])
        pieces = segments(view)
        assert "".join(piece.text for piece in pieces).startswith(served)
