"""The model's vocabulary: text to tokens and back, and the chat template.

What a user writes is never a control token. A special token spelled out in a message's content (`<|im_end|>`) is
replaced by a mark with an unguessable number before the template is rendered; the rendered text is cut at the marks,
and in their place the characters of that string are tokenised as plain text. The template's own control tokens stay
what they are, and a message without such a string is tokenised exactly as it always was.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from app.engines.transformers.text import ByteDetokenizer, Detokenizer, WindowDetokenizer
from app.errors import InvalidRequest


class Tokens:
    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self.size = vocab_size
        self._added = dict(tokenizer.added_tokens_decoder)
        self.special = {id_ for id_, token in self._added.items() if token.special}
        spelled = sorted((token.content for token in self._added.values()), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, spelled))) if spelled else None
        # made now, because the switch for it is the tokenizer's own and requests are tokenised in several threads
        self._spelled_out = {control: self._as_text(control) for control in spelled}

    @property
    def can_chat(self) -> bool:
        return bool(self._tokenizer.chat_template)

    @property
    def eos(self) -> int | None:
        eos: int | None = self._tokenizer.eos_token_id
        return eos

    # --- to tokens ------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special).ids
        return ids

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        add_special: bool = False,
        switches: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt of a conversation."""
        mark = f"\ue000{secrets.token_hex(8)}:"
        plain: list[str] = []

        def hide(found: re.Match[str]) -> str:
            plain.append(found[0])
            return f"{mark}{len(plain) - 1}\ue001"

        hidden = [
            {**each, "content": self._control.sub(hide, each["content"]) if self._control else each["content"]}
            for each in messages
        ]
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                hidden,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **(switches or {}),
            )
        except Exception as error:
            # the template is the model's, and raises what it likes at roles and orders it does not know
            raise InvalidRequest(
                "The model's chat template does not accept these messages.", param="messages"
            ) from error
        ids: list[int] = []
        for index, part in enumerate(re.split(f"{mark}([0-9]+)\ue001", rendered)):
            if index % 2:
                ids += self._spelled_out[plain[int(part)]]
            elif part or (add_special and index == 0):
                ids += self.encode(part, add_special=add_special and index == 0)
        return ids

    def _as_text(self, control: str) -> list[int]:
        """The characters of a control token's name, as a user would type them."""
        self._backend.encode_special_tokens = True
        try:
            ids = self.encode(control, add_special=False)
        finally:
            self._backend.encode_special_tokens = False
        if any(id_ in self._added for id_ in ids):  # it is added but not special: cut it in two
            ids = self.encode(control[:1], add_special=False) + self.encode(control[1:], add_special=False)
        return ids

    # --- to text --------------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        detokenizer = self.detokenizer(skip_special=skip_special)
        return "".join([*map(detokenizer.push, ids), detokenizer.finish()])

    def detokenizer(self, *, skip_special: bool = True) -> Detokenizer:
        pieces = self._pieces
        if pieces is not None:
            return ByteDetokenizer(self._shown_pieces if skip_special else pieces)
        return WindowDetokenizer(lambda ids: self._backend.decode(ids, skip_special_tokens=skip_special))

    def name(self, id_: int) -> str:
        """The token as the vocabulary spells it."""
        return self._backend.id_to_token(id_) or ""

    def bytes_of(self, id_: int) -> bytes:
        """What the token stands for."""
        if self._pieces is not None:
            return self._pieces[id_]
        text: str = self._backend.decode([id_], skip_special_tokens=False)
        return text.encode()

    @cached_property
    def _pieces(self) -> list[bytes] | None:
        return pieces_of(self._backend, self.size)

    @cached_property
    def _shown_pieces(self) -> list[bytes]:
        assert self._pieces is not None
        return [b"" if id_ in self.special else piece for id_, piece in enumerate(self._pieces)]


def pieces_of(backend: Any, size: int) -> list[bytes] | None:
    """The bytes of every token, or None if in this vocabulary a token's text depends on its neighbours."""
    decoder = type(backend.decoder).__name__
    names = [backend.id_to_token(id_) for id_ in range(size)]
    if decoder == "ByteLevel":
        return [_byte_level(name) if name else b"" for name in names]
    return None


def _byte_level(name: str) -> bytes:
    try:
        return bytes(_BYTES[character] for character in name)
    except KeyError:  # an added token is spelled as it is
        return name.encode()


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes bytes as characters: the printable ones as themselves, the rest from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


_BYTES = _byte_alphabet()
