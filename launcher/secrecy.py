"""What looks secret: kept from command lines, other hosts, logs and provenance."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

MASK = "***"
_NAME = re.compile(
    r"TOKEN(?!IZ|S(?![A-Z]))|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY|JWT"
    r"|(?:^|[_.-])(?:KEY|AUTH|PWD|PASS|PAT|COOKIE)(?:$|[_.-])"
)
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^/\s@:]*):[^/\s@]*@")
_PARAMETER = re.compile(
    r"(?P<name>[?&](?:[\w.-]*(?:token|secret|password|signature|credential)|sig|key|api_?key)=)"
    r"[^&\s'\"#]+",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|sk-[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}|A[KS]IA[0-9A-Z]{16}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
_ASSIGNED = re.compile(r"(?P<name>[A-Za-z_][\w.-]*)=(?P<value>[^\s,;&'\"]*[^\s,;:&'\"])")
# In JSON and in YAML's braces.
_PAIR = re.compile(
    r"(?P<before>[{,]\s*[\"']?|[\"'])(?P<name>[A-Za-z_][\w.-]*)(?P<colon>[\"']?\s*:\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|[^\s,}\]\"']+)"
)
_KEY = re.compile(r"API_?KEY|ACCESS_?KEY|SECRET|PASSWORD|PASSWD|(?:AUTH|ACCESS|HF)_?TOKEN")
_PLAIN = re.compile(r"true|false|null|none|[-+]?[\d_]+(?:\.[\d_]*)?(?:e[-+]?\d+)?", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Whether a variable or key is called like a token, key or password.

    ``TOKENIZERS_PARALLELISM`` and ``MAX_TOKENS`` are not.
    """
    return _NAME.search(name.upper()) is not None


def holds_secret(value: str) -> bool:
    """Whether a value is, or holds, a token of a known form or a URL with a password."""
    return any(pattern.search(value) for pattern in (_URL, _PARAMETER, _TOKEN))


def mask(text: str) -> str:
    """A text without what looks secret in it: passwords of URLs, tokens, ``API_KEY=...``."""
    if "://" in text:
        text = _URL.sub(rf"\g<scheme>\g<user>:{MASK}@", text)
    if "=" in text:
        text = _PARAMETER.sub(rf"\g<name>{MASK}", text)
        text = _ASSIGNED.sub(_mask_assigned, text)
    if ":" in text:
        text = _PAIR.sub(_mask_pair, text)
    return _TOKEN.sub(MASK, text)


def _mask_assigned(found: re.Match[str]) -> str:
    name, value = found["name"], found["value"]
    if not is_secret_name(name):
        # srun's --export=NAME=VALUE: the name that counts comes after another.
        return f"{name}={_ASSIGNED.sub(_mask_assigned, value)}"
    return found[0] if _PLAIN.fullmatch(value) else f"{name}={MASK}"


def _mask_pair(found: re.Match[str]) -> str:
    if not is_secret_name(found["name"]) or _PLAIN.fullmatch(found["value"].strip("\"'")):
        return found[0]
    return f"{found['before']}{found['name']}{found['colon']}{MASK}"


def mask_word(word: str) -> str:
    """A word of a command line: of ``KEY=VALUE`` the whole value, if the key looks secret."""
    name, equals, value = word.partition("=")
    if equals and is_secret_name(name.lstrip("-")) and not _PLAIN.fullmatch(value):
        return f"{name}={MASK}"
    return mask(word)


def secret_places(values: Any, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The keys that lead to a secret in nested mappings and lists, such as a recipe's.

    Fewer names count than of variables: a label or a column may be called ``key`` or ``token``.
    """
    if isinstance(values, Mapping):
        for key, inner in values.items():
            yield from secret_places(inner, (*keys, key))
    elif isinstance(values, list | tuple):
        for index, inner in enumerate(values):
            yield from secret_places(inner, (*keys, index))
    elif isinstance(values, str) and values:
        named = any(isinstance(key, str) and _KEY.search(key.upper()) for key in keys[-1:])
        if named or holds_secret(values):
            yield keys
