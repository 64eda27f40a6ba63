"""Messages from Jinja2 templates and text that nobody vouches for.

Prompts, responses and the row's columns may hold anything: template syntax, chat markup, fences, the judge's own
verdict. Each becomes a `Data` object, whose text enters the message once, its special tokens broken, between fences longer
than any run of backticks inside it, and is never read as a template. Templates run in Jinja2's sandbox and may
use only variables that exist. Left out: includes and macros from other files.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, Literal

from jinja2 import (
    StrictUndefined,
    Template,
    TemplateError,
    TemplateSyntaxError,
    Undefined,
    UndefinedError,
    meta,
    nodes,
    pass_environment,
)
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prompts.cleaning import clean
from selfplay.errors import ConfigError
from selfplay.records import Message

Form = Literal["block", "none"]
TEXT = {
    *("capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "pprint", "replace", "safe"),
    *(
        "striptags",
        "string",
        "title",
        "trim",
        "truncate",
        "upper",
        "urlencode",
        "urlize",
        "wordcount",
        "wordwrap",
        "xmlattr",
    ),
}
"""Filters that make a text of what they are given."""


def fence(text: str) -> str:
    """Return the text on lines of its own between two equal runs of backticks, longer than any run inside it, at least
    three."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    bar = "`" * max(3, longest + 1)
    return f"{bar}\n{text}\n{bar}"


class Data:
    """Text that nobody vouches for. In a template it prints fenced, also within a list; it compares, counts and tests like
    its text."""

    __slots__ = ("_cut", "_form", "_text")

    def __init__(self, text: str, form: Form = "block", special: Iterable[str] = (), limit: int | None = None) -> None:
        cleaned = clean(text, special)
        self._form = form
        self._cut = max(0, len(cleaned) - limit) if limit is not None else 0
        self._text = cleaned[:limit] if self._cut else cleaned

    def __str__(self) -> str:
        return self._with_note(fence(self._text) if self._form == "block" else self._text)

    __repr__ = __str__

    def _unfenced(self) -> str:
        return self._with_note(self._text)

    def _with_note(self, shown: str) -> str:
        return f"{shown}\n(cut here: {self._cut} more characters)" if self._cut else shown

    def __len__(self) -> int:
        return len(self._text)

    def __contains__(self, part: object) -> bool:
        return str(part) in self._text

    def __eq__(self, other: object) -> bool:
        return self._text == (other._text if isinstance(other, Data) else other)

    def __hash__(self) -> int:
        return hash(self._text)


def wrap(value: Any, form: Form = "block", special: Iterable[str] = ()) -> Any:
    """Return a row's column as data: texts wrapped, lists and mappings gone through (keys cleaned), numbers and None as they
    are."""
    if isinstance(value, Mapping):
        return {clean(str(key), special): wrap(item, form, special) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [wrap(item, form, special) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else Data(str(value), form, special)


def printed(value: Any, form: Form = "block") -> Any:
    """Return what a template prints for a value: a list or mapping as JSON, fenced.

    Raises TypeError for what has no content to print, such as a function, whose text would be an address.
    """
    if value is None or isinstance(value, (str, bool, int, float, Data, Undefined)):
        return value
    return Data(json.dumps(value, ensure_ascii=False, default=content), form)


def content(value: Any) -> Any:
    """Return data as its text, and any collection that is not a list as a list. Raises TypeError for what is neither."""
    if isinstance(value, Data):
        return value._unfenced()
    if isinstance(value, Iterable) and not isinstance(value, type):
        return list(value)
    raise TypeError(f"a {type(value).__name__} cannot be printed: only texts, numbers, lists and mappings can")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, in which whatever becomes text, by `~`, `%`, `format` or a filter, becomes what `{{ }}` prints of it."""

    intercepted_binops = frozenset(["%"])

    def __init__(self, form: Form) -> None:
        super().__init__(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=partial(printed, form=form)
        )
        self.form = form
        self.filters = {name: self._of_text(call) if name in TEXT else call for name, call in self.filters.items()}
        self.filters |= {"join": pass_environment(joined), "printed": self.finalize}

    def of_tree(self, tree: nodes.Template) -> Template:
        """Return a parsed template, what its `~` puts together printed first."""
        for concat in tree.find_all(nodes.Concat):
            concat.nodes = [nodes.Filter(one, "printed", [], [], None, None, lineno=one.lineno) for one in concat.nodes]
        tree.set_environment(self)
        return self.from_string(tree)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return `left % right`."""
        if isinstance(left, str):
            right = self._arguments(right) if isinstance(right, (tuple, Mapping)) else printed(right, self.form)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __called: Any, *arguments: Any, **options: Any) -> Any:
        """Call what a template calls. The names are Jinja2's, so that no option can have them."""
        if getattr(__called, "__name__", "") in ("format", "format_map"):
            arguments, options = __self._arguments(arguments), __self._arguments(options)
        return super().call(__context, __called, *arguments, **options)

    def _arguments(self, values: Any) -> Any:
        """Return what is filled into a text, printed one by one."""
        if isinstance(values, Mapping):
            return {name: printed(value, self.form) for name, value in values.items()}
        return tuple(
            self._arguments(value) if isinstance(value, Mapping) else printed(value, self.form) for value in values
        )

    def _of_text(self, call: Callable[..., Any]) -> Callable[..., Any]:
        own = 1 if hasattr(call, "jinja_pass_arg") else 0  # Jinja2's, before what the template gives

        @wraps(call)
        def checked(*arguments: Any, **options: Any) -> Any:
            given = [printed(value, self.form) for value in arguments[own:]]
            return call(*arguments[:own], *given, **{key: printed(value, self.form) for key, value in options.items()})

        return checked


def joined(environment: Sandbox, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    """Return the filter `join`: what `{{ }}` prints of each item, or of an attribute of it."""
    items = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    return str(printed(d, environment.form)).join(str(printed(item, environment.form)) for item in items)


def variables_of(source: str) -> set[str]:
    """Return the variables that a valid template uses."""
    return meta.find_undeclared_variables(ImmutableSandboxedEnvironment().parse(source))


def compile_template(source: str, known: Sequence[str], where: str, form: Form = "block") -> Template:
    """Return a template that uses none but the `known` variables and prints collections of data in `form`.

    Raises ConfigError naming `where` for any other variable, or bad syntax.
    """
    environment = Sandbox(form)
    try:
        tree = environment.parse(source)
    except TemplateSyntaxError as error:
        raise ConfigError(f"{where}: the template is not valid, line {error.lineno}: {error.message}") from None
    for name in sorted(meta.find_undeclared_variables(tree) - set(known) - set(environment.globals)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise ConfigError(
            f"{where}: the template uses {name!r}, which does not exist"
            + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}")
        )
    return environment.of_tree(tree)


def render(
    template: Template, role: Literal["system", "user", "assistant"], variables: Mapping[str, Any], where: str
) -> Message:
    """Return one message. Raises ConfigError naming `where` if the template asks for something that this row does not have."""
    try:
        return Message(role=role, content=template.render(variables).strip())
    except UndefinedError as error:
        columns = ", ".join(variables.get("meta", {})) or "none"
        raise ConfigError(
            f"{where}: the template asks for what this row does not have: {error.message} (its columns: {columns})"
        ) from None
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ConfigError(f"{where}: the template cannot be filled in: {type(error).__name__}: {error}") from None
