"""The base class of every node: validates inputs against the schema and makes error messages safe to encode."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from numbers import Real

import torch
from comfy_api.latest import io

from ..ultragen_core.printable import encodable

MAX_SHOWN_LENGTH = 60  # characters of a value in an error
MAX_SHOWN_OPTIONS = 12  # options of a list in an error
LARGEST = sys.float_info.max


class Node(io.ComfyNode):
    """A node that validates all inputs against its schema, widgets and links alike.

    ComfyUI validates the widgets of a queued prompt only, and lets NaN pass. Subclasses implement `execute`,
    `validate_inputs` and `fingerprint_inputs` as for ComfyNode; this class wraps them:
    - `execute` gets valid inputs only. It first calls `validate_inputs` again, because linked values are None when a
      prompt is queued.
    - `validate_inputs` may raise: the message is then what the node answers. As in ComfyUI, it must itself check the
      options of a combo that it takes. Nodes with float inputs always have it, so that NaN is refused when the prompt
      is queued.
    - `fingerprint_inputs` never raises. On an error the node runs again, and `execute` reports what is wrong.
    - Errors keep their type and traceback; characters that cannot be encoded are escaped in their messages.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "validate_inputs" not in cls.__dict__ and _float_inputs(cls):
            cls.validate_inputs = classmethod(lambda cls: True)
        for name, guard in _GUARDS.items():
            method = cls.__dict__.get(name)
            # ComfyUI runs nodes on locked copies of their classes, whose methods are wrapped already.
            if method is not None and not hasattr(method.__func__, "__wrapped__"):
                setattr(cls, name, classmethod(guard(cls, method.__func__)))

    @classmethod
    def on_refused(cls, inputs: Mapping[str, object]) -> str:
        """Hook: save whatever would be lost because `execute` refuses these inputs.

        Returns a sentence for the error message, or "".
        """
        return ""

    @classmethod
    def checked(cls, inputs: Mapping[str, object], queued: bool = False) -> dict[str, object]:
        """Return the validated inputs, numbers converted to the schema's type. Unknown names are passed through.

        queued: whether the prompt is only being queued. Then None stands for a linked value, and ComfyUI itself reports
        missing inputs. Raises ValueError for a value that the widget or socket cannot hold.
        """
        schema, values = cls.define_schema(), dict(inputs)
        for each in schema.inputs:
            if each.id not in values:
                if not (queued or each.optional):
                    raise ValueError(f"{schema.display_name}: {each.id} is missing. Connect it or give it a value.")
                continue
            options = None if each.id in _self_validated(cls) else getattr(each, "options", None)
            check = functools.partial(_validated, schema.display_name, each, options, queued)
            value = values[each.id]
            if value is None and each.optional and not queued and hasattr(each, "default"):
                del values[each.id]  # a link without a value leaves an optional widget at its default
                continue
            if schema.is_input_list and value is not None:
                if not (value or queued or each.optional):
                    raise ValueError(
                        f"{schema.display_name}: {each.id} must not be an empty list. Connect at least one."
                    )
                values[each.id] = [check(one) for one in value]
            else:
                values[each.id] = check(value)
        return values


def _validated(node: str, each: io.Input, options: list | None, queued: bool, value: object) -> object:
    """Return `value` in the type of the input `each`. Raises ValueError."""
    if value is None and (queued or each.optional):
        return None
    rule, fits = _requirement(each, options)
    if not fits(value):
        raise ValueError(f"{node}: {each.id} must be {rule}, got {_shown(value)}. Change the value or the link.")
    if isinstance(each, io.Int.Input):
        return int(value)
    return float(value) if isinstance(each, io.Float.Input) else value


def _requirement(each: io.Input, options: list | None) -> tuple[str, Callable[[object], bool]]:
    """Return what a value must be, in words and as a predicate."""
    if isinstance(each, (io.Int.Input, io.Float.Input)):
        return _number(each.min, each.max, whole=isinstance(each, io.Int.Input))
    if isinstance(each, io.Boolean.Input):
        return "true or false", lambda value: isinstance(value, int) and value in (0, 1)
    if isinstance(each, io.Combo.Input) and options is not None:
        listed = (
            ", ".join(map(str, options)) if len(options) <= MAX_SHOWN_OPTIONS else f"{len(options)} options of its list"
        )
        words = f"one of {listed}" if options else "one of its options, but its list is empty"
        return words, lambda value: isinstance(value, (str, int)) and value in options
    if isinstance(each, (io.String.Input, io.Combo.Input)):
        return "text", lambda value: isinstance(value, str)
    if isinstance(each, io.Latent.Input):
        return "a latent", _is_latent
    return "connected", lambda value: value is not None


def _is_latent(value: object) -> bool:
    samples = value.get("samples") if isinstance(value, Mapping) else None
    return isinstance(samples, torch.Tensor) or getattr(
        samples, "is_nested", False
    )  # a nested latent of video and audio


def _number(least: float | None, most: float | None, whole: bool) -> tuple[str, Callable[[object], bool]]:
    low, high = -LARGEST if least is None else least, LARGEST if most is None else most

    def fits(value: object) -> bool:
        number = isinstance(value, Real) and not isinstance(value, bool)
        return number and low <= value <= high and not (whole and value % 1)

    limits = "" if None in (least, most) else f" from {least} to {most}"
    return f"a {'whole ' if whole else ''}number{limits}", fits


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if not isinstance(value, (str, int, float)) or (isinstance(value, int) and abs(value) > LARGEST):
        return f"a value of type {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[:MAX_SHOWN_LENGTH]}..."


def _self_validated(cls: type[Node]) -> set[str]:
    """Return the inputs that `validate_inputs` takes by name; ComfyNode's default takes none."""
    parameters = inspect.signature(cls.validate_inputs).parameters.values()
    return {each.name for each in parameters if each.kind != each.VAR_KEYWORD}


def _float_inputs(cls: type[Node]) -> list[str]:
    """Return the ids of the float inputs of a class that has a schema of its own."""
    inputs = cls.define_schema().inputs if "define_schema" in cls.__dict__ else []
    return [each.id for each in inputs if isinstance(each, io.Float.Input)]


def _guarded_execute(_: type[Node], execute: Callable) -> Callable:
    names = list(inspect.signature(execute).parameters)[1:]

    @functools.wraps(execute)
    def guarded(cls, *args, **inputs):
        given = dict(zip(names, args, strict=False)) | inputs
        try:
            return execute(cls, **_accepted(cls, given))
        except Exception as error:
            _make_printable(error)
            raise

    return guarded


def _accepted(cls: type[Node], given: dict[str, object]) -> dict[str, object]:
    try:
        values = cls.checked(given)
        own = {name: values[name] for name in _self_validated(cls) & values.keys()}
        verdict = cls.validate_inputs(**own) if own else True
        if verdict is not True:
            raise ValueError(f"{cls.define_schema().display_name}: {verdict}")
    except ValueError as error:
        kept = cls.on_refused(given)
        raise ValueError(f"{error}\n{kept}" if kept else str(error)) from error
    return values


def _guarded_validation(node: type[Node], validate: Callable) -> Callable:
    own = inspect.signature(validate).parameters
    floats = [name for name in _float_inputs(node) if name not in own]
    # ComfyUI passes the inputs that the signature names.
    named = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in floats]
    signature = inspect.Signature([*own.values(), *named])

    @functools.wraps(validate)
    def guarded(cls, *args, **inputs):
        values = dict(zip(list(signature.parameters)[1:], args, strict=False)) | inputs
        try:
            signature.bind(cls, **values)
        except TypeError:
            return True  # ComfyUI itself reports a missing input
        try:
            checked = cls.checked(values, queued=True)
            verdict = validate(cls, **{name: value for name, value in checked.items() if name not in floats})
        except Exception as error:
            # Messages of other errors were not written for users.
            verdict = str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
        return encodable(verdict) if isinstance(verdict, str) else verdict

    guarded.__signature__ = signature  # ComfyUI reads the parameters without following __wrapped__
    return guarded


def _guarded_fingerprint(_: type[Node], fingerprint: Callable) -> Callable:
    @functools.wraps(fingerprint)
    def guarded(cls, *args, **inputs):
        try:
            return fingerprint(cls, *args, **inputs)
        except Exception:
            return float("nan")

    guarded.__signature__ = inspect.signature(fingerprint)
    return guarded


_GUARDS = {
    "execute": _guarded_execute,
    "validate_inputs": _guarded_validation,
    "fingerprint_inputs": _guarded_fingerprint,
}


def _make_printable(error: BaseException) -> None:
    """Escape, in place, characters that cannot be encoded in the messages of `error` and its causes."""
    seen, waiting = set(), [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        waiting += [one.__cause__, one.__context__]
        if (args := tuple(map(_cleaned, one.args))) != one.args:
            one.args = args
        for name in {*vars(one), *(("filename", "filename2", "strerror") if isinstance(one, OSError) else ())}:
            value = getattr(one, name)
            if isinstance(value, str) and value != encodable(value):
                setattr(one, name, encodable(value))


def _cleaned(value: object) -> object:
    return encodable(value) if isinstance(value, str) else value
