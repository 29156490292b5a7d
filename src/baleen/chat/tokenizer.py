"""Text to tokens: byte-level BPE with the V3.2 special tokens, over the `tokenizers` library.

Two readings of the same vocabulary live side by side. In the special one, `<｜User｜>` is a token; in the plain one it
is nothing but its characters, so text from outside can never forge a turn. Digits are cut into pairs from the left,
whatever stands beside them, so a number is the same few tokens everywhere; a word never takes a space along, so it is
the same tokens in a sentence, in quotes and in a call. Segments are tokenised one by one: what the model sampled never
merges with what it was given, and boundaries in training are those of sampling.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baleen.chat.encoding import Segment
from baleen.chat.markup import BOS, EOS, FIXED_TEXTS, PAD, SPECIAL_TOKENS, THINK, THINK_END

if TYPE_CHECKING:
    import tokenizers

PIECES = r"\d{1,2}|\p{Lu}?\p{Ll}+|\p{L}+| ?[^\s\p{L}\d]+ ?|\s+"
"""What merges stay inside: pairs of digits, words (camelCase is several), punctuation with a space on either side, and
white space."""

CACHED_TEXTS = 32_768
CACHED_LENGTH = 256
"""Characters; longer texts seldom repeat and would only fill memory. A few are kept: system prompts with their tools
open one conversation after the other."""

CACHED_LONG_TEXTS = 64


class TokenizerError(ValueError):
    """A tokenizer that cannot be trained or loaded; the message says what to do."""


class Tokenizer:
    """The vocabulary of a model. `train` or `load` one."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._special = backend
        self._plain = _without_added_tokens(backend)
        self._encode_short = lru_cache(CACHED_TEXTS)(self._encode)
        self._encode_long = lru_cache(CACHED_LONG_TEXTS)(self._encode)
        self.bos_id = self._id(BOS)
        self.eos_id = self._id(EOS)
        self.pad_id = self._id(PAD)
        self.think_id = self._id(THINK)
        self.think_end_id = self._id(THINK_END)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learns merges from `texts`; the same texts give the same tokenizer.

        The vocabulary is at most `vocab_size`: special tokens first, then the 256 bytes, then merges, at last the
        format's fixed texts. It stays smaller where the texts hold fewer pairs.
        """
        from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Backend

        alphabet = pre_tokenizers.ByteLevel.alphabet()
        least = len(SPECIAL_TOKENS) + len(alphabet) + len(FIXED_TEXTS)
        if vocab_size < least:
            raise TokenizerError(f"vocab_size is {vocab_size}; bytes and the format's own tokens alone need {least}")
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PIECES), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(FIXED_TEXTS),
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
        backend.train_from_iterator(_ordinary_text(texts), trainer=trainer)
        backend.add_tokens([AddedToken(text, normalized=False) for text in FIXED_TEXTS])
        return cls(backend)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads `tokenizer.json`, given itself or as the folder that holds it."""
        from tokenizers import Tokenizer as Backend

        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise TokenizerError(f"there is no {file}; give a folder that holds a tokenizer.json")
        return cls(Backend.from_file(str(file)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json` into the folder `path`; transformers loads them."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
        }
        _write(folder / "tokenizer.json", self._special.to_str(pretty=True))
        _write(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2) + "\n")

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The ids of `text`. With `special=False` the spelling of a special token is only its characters."""
        cached = self._encode_short if len(text) <= CACHED_LENGTH else self._encode_long
        return list(cached(text, special))

    def encode_segments(self, segments: Iterable[Segment]) -> tuple[list[int], list[bool]]:
        """The ids of a conversation and, for each, whether the model sampled it."""
        ids: list[int] = []
        sampled: list[bool] = []
        for segment in _joined(segments):
            piece = self.encode(segment.text, segment.special)
            ids += piece
            sampled += [segment.sampled] * len(piece)
        return ids, sampled

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of `ids`. Bytes that are not UTF-8 come out as the replacement character."""
        return str(self._special.decode(list(ids), skip_special_tokens=skip_special))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; joined over ids they are the UTF-8 of what `decode` gives. An unknown id has none."""
        return self._bytes.get(token_id, b"")

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens included."""
        return int(self._special.get_vocab_size(with_added_tokens=True))

    def __len__(self) -> int:
        return self.vocab_size

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        """Every token as bytes: made once, because a stream asks for one with every token that is sampled."""
        letters = _byte_letters()
        return {number: _as_bytes(token, letters) for token, number in self._special.get_vocab().items()}

    def _encode(self, text: str, special: bool) -> tuple[int, ...]:
        backend = self._special if special else self._plain
        return tuple(backend.encode(_without_surrogates(text), add_special_tokens=False).ids)

    def _id(self, token: str) -> int:
        number = self._special.token_to_id(token)
        if number is None:
            raise TokenizerError(f"the vocabulary has no {token}; this is not a tokenizer of the V3.2 format")
        return int(number)


def _without_added_tokens(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same merges, but no text is taken for an added token, whether it is marked special or not."""
    from tokenizers import Tokenizer as Backend

    form: dict[str, Any] = json.loads(backend.to_str())
    form["added_tokens"] = []
    form["post_processor"] = None  # may name special tokens; it is never used here
    return Backend.from_str(json.dumps(form))


def _ordinary_text(texts: Iterable[str]) -> Iterator[str]:
    """What merges are learned from: tokens of the format never need any, so their spelling is cut out."""
    spellings = re.compile("|".join(map(re.escape, (*FIXED_TEXTS, *SPECIAL_TOKENS))))
    for text in texts:
        yield from filter(None, spellings.split(_without_surrogates(text)))


def _byte_letters() -> dict[str, int]:
    """The letters in which byte-level vocabularies spell bytes: printable Latin-1 as itself, the others from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _as_bytes(token: str, letters: dict[str, int]) -> bytes:
    """An added token is written with its own characters, some of which are no letters of bytes."""
    if all(letter in letters for letter in token):
        return bytes(letters[letter] for letter in token)
    return token.encode("utf-8")


def _joined(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Neighbours of the same kind as one segment, as their text is one text to the model."""
    texts: list[str] = []
    kind: tuple[bool, bool] | None = None
    for segment in segments:
        if kind is not None and kind != (segment.sampled, segment.special):
            yield Segment("".join(texts), *kind)
            texts = []
        kind = segment.sampled, segment.special
        texts.append(segment.text)
    if kind is not None:
        yield Segment("".join(texts), *kind)


def _without_surrogates(text: str) -> str:
    """JSON can escape half a surrogate pair, which has no UTF-8 form; it becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _write(file: Path, text: str) -> None:
    """Whole or not at all: a reader never sees half a file."""
    unfinished = file.with_name(file.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)
