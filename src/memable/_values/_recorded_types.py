"""
Recorded type names, read back: which of today's types a recorded value is to be read by.

Rules: a value is read in the form in which it was recorded, so the answer is the recorded type, put together from
parts of the type that the code asks for today. There is an answer only if each recorded value is one that the asked
type allows: the types are the same; or the asked one is a union, and each recorded member is one of its members; or,
piece by piece, the same holds for the types in them (``list[int]`` as ``list[int | None]``); or a Literal is read as
the type of its values; or one of both is ``Any`` and the other plain JSON. Anything else is a mismatch. Classes go by
their names, a moved one by its alias. Nothing is imported by a recorded name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

import attrs

from ._type_trees import ANY, STR, Kind, TypeTree, literal, literal_text, union

#: A string or bytes literal, a bracket, a comma, a bar, or a name; names may hold blanks, as file names do.
_WORD = re.compile(r"""\s*(?:(b?'(?:[^'\\]|\\.)*'|b?"(?:[^"\\]|\\.)*")|([\[\],|])|([^\[\],|'"]+))""")
#: Recorded names come from annotations; nobody nests those as deeply.
_MAX_DEPTH = 100


@attrs.frozen
class RecordedType:
    """
    A recorded type name, taken apart.
    """

    head: str
    "``|`` for a union; else the name before the brackets, or the text of a literal's value."
    args: tuple[RecordedType, ...] = ()
    "What is in the brackets, or the members of the union."


def parse_recorded(name: str) -> RecordedType:
    """
    Take a recorded type name apart.

    Raises:
        ValueError: It is none.
    """
    words: list[str] = []
    end = 0
    while end < len(name):
        found = _WORD.match(name, end)
        if found is None:
            raise ValueError(f"{name!r} is no recorded type name")
        words.append(next(filter(None, found.groups())).strip())
        end = found.end()
    rest = iter([*words, ""])
    tree, word = _parse_union(rest, next(rest), 0)
    if word != "":
        raise ValueError(f"{name!r} is no recorded type name")
    return tree


def _parse_union(rest: Iterator[str], word: str, depth: int) -> tuple[RecordedType, str]:
    """Parse from *word* on; return what was parsed, and the word behind it."""
    members = []
    while True:
        member, word = _parse_one(rest, word, depth)
        members.append(member)
        if word != "|":
            return (members[0] if len(members) == 1 else RecordedType("|", tuple(members))), word
        word = next(rest)


def _parse_one(rest: Iterator[str], word: str, depth: int) -> tuple[RecordedType, str]:
    if word in ("", "[", "]", ",", "|") or depth > _MAX_DEPTH:
        raise ValueError(f"unexpected {word!r} in a recorded type name")
    head, word = word, next(rest)
    args: list[RecordedType] = []
    if word == "[":
        while word != "]":
            arg, word = _parse_union(rest, next(rest), depth + 1)
            args.append(arg)
            if word not in (",", "]"):
                raise ValueError(f"unexpected {word!r} in a recorded type name")
        word = next(rest)
    return RecordedType(head, tuple(args)), word


def rename(recorded: RecordedType, names: Mapping[str, str]) -> RecordedType:
    """
    Return *recorded* with classes under today's *names*, members of enums in a Literal included.
    """
    if recorded.head == "Literal":
        return attrs.evolve(recorded, args=tuple(_rename_member(arg, names) for arg in recorded.args))
    return RecordedType(names.get(recorded.head, recorded.head), tuple(rename(arg, names) for arg in recorded.args))


def _rename_member(recorded: RecordedType, names: Mapping[str, str]) -> RecordedType:
    enum_name, dot, member = recorded.head.rpartition(".")
    return RecordedType(names.get(enum_name, enum_name) + dot + member)


def narrow(recorded: RecordedType, asked: TypeTree) -> TypeTree | None:  # noqa: PLR0911 - one for each kind
    """
    Return the recorded type, put together from parts of the *asked* one, or None if that does not allow it.
    """
    if recorded.head == "|":
        members = [narrow(member, asked) for member in recorded.args]
        found = [member for member in members if member is not None]
        return union(found) if len(found) == len(members) else None
    if recorded.head == "Literal":
        values = [_literal_value(arg.head, asked) for arg in recorded.args]
        return literal(*values) if values and None not in values else None
    match asked.kind:
        case Kind.TRUSTED:
            return asked if recorded == parse_recorded(asked.name) else None
        case Kind.ALIAS if recorded.head == asked.head:
            return _narrow_parts(recorded, asked)
        case _ if recorded == _ANY:
            return _unchanged(asked) if _is_plain(asked) else None
        case Kind.UNION | Kind.ALIAS | Kind.ANY:
            return _narrow_to_member(recorded, asked)
        case _:
            return _narrow_parts(recorded, asked) if recorded.head == asked.head else None


def _narrow_to_member(recorded: RecordedType, asked: TypeTree) -> TypeTree | None:
    # The member of the very same name goes before those that it could be widened to.
    exact = [member for member in asked.members if recorded == parse_recorded(member.name)]
    for member in (*exact, *asked.members):
        found = narrow(recorded, member)
        if found is not None:
            return found
    return None


def _narrow_parts(recorded: RecordedType, asked: TypeTree) -> TypeTree | None:
    args = recorded.args
    if asked.head == "tuple":
        variadic = [arg.head for arg in args[1:]] == ["..."]
        if variadic is not (asked.kind is Kind.VARIADIC):
            return None
        args = args[:1] if variadic else tuple(arg for arg in args if arg.head != "()")
    if len(args) != len(asked.args):
        return None
    found = [narrow(arg, part) for arg, part in zip(args, asked.args, strict=True)]
    parts = tuple(part for part in found if part is not None)
    return attrs.evolve(asked, args=parts) if len(parts) == len(found) else None


def _literal_value(text: str, asked: TypeTree) -> object | None:
    """Return the value that a recorded Literal names, if the *asked* type allows it."""
    enum_name, _, name = text.rpartition(".")
    for member in asked.members:
        match member.kind:
            case Kind.LITERAL:
                found = [value for value in member.source if literal_text(value) == text]
            case Kind.ENUM if enum_name == member.head:
                found = [member.source.__members__[name]] if name in member.source.__members__ else []
            case Kind.LEAF:
                found = [value for value in _evaluate(text) if type(value) is member.source]
            case _:
                found = []
        if found:
            return found[0]  # type: ignore[no-any-return]  # the values of a literal are any objects
    return None


_ANY = RecordedType(ANY.name)


def _evaluate(text: str) -> list[object]:
    """Return the value of a literal's text alone, or nothing for the name of an enum's member."""
    try:
        return [ast.literal_eval(text)]
    except (ValueError, SyntaxError):
        return []


def _unchanged(asked: TypeTree) -> TypeTree:
    return asked if asked.kind is Kind.ANY else TypeTree(Kind.UNCHANGED, ANY.name, None, (asked,))


def _is_plain(tree: TypeTree) -> bool:
    """Tell whether the type's form is the value itself, as that of an unannotated value is."""
    match tree.kind:
        case Kind.LEAF:
            return tree.source in (str, int, bool, type(None), float)
        case Kind.LITERAL:
            return all(type(value) in (str, int, bool) for value in tree.source)
        case Kind.LIST:
            return _is_plain(tree.args[0])
        case Kind.DICT:
            return tree.args[0] == STR and _is_plain(tree.args[1])
        case Kind.UNION:
            return all(member.kind in (Kind.LEAF, Kind.LITERAL) and _is_plain(member) for member in tree.args)
        case _:
            return tree.kind is Kind.ANY
