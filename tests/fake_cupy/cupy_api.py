"""What CuPy offers, read from api.txt: names, and the arguments that each function, method or ufunc takes."""

import ast
import inspect
from dataclasses import dataclass, field
from pathlib import Path

Parameter = inspect.Parameter


@dataclass
class UFunc:
    """Inputs, outputs, and whether there is a loop for bfloat16."""

    nin: int
    nout: int
    bfloat16: bool


@dataclass
class Api:
    """version, then name -> signature for functions and methods, name -> UFunc, and names that are something else."""

    version: str
    functions: dict[str, inspect.Signature] = field(default_factory=dict)
    methods: dict[str, inspect.Signature] = field(default_factory=dict)
    ufuncs: dict[str, UFunc] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)


def read() -> Api:
    text = Path(__file__).with_name("api.txt").read_text(encoding="utf-8")
    api = Api(version=text.split(",")[0].removeprefix("# CuPy "))
    for node in ast.parse(text).body:
        match node:
            case ast.FunctionDef():
                api.functions[node.name] = _signature(node.args)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call):
                nin, nout, bfloat16 = (ast.literal_eval(v) for v in (*call.args, call.keywords[0].value))
                api.ufuncs[name] = UFunc(nin, nout, bfloat16)
            case ast.Expr(value=ast.Name(id=name)):
                api.others.add(name)
            case ast.ClassDef(body=body):
                api.methods = {n.name: _signature(n.args) for n in body if isinstance(n, ast.FunctionDef)}
                api.attributes = {n.value.id for n in body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Name)}
    return api


def _signature(args: ast.arguments) -> inspect.Signature:
    positional = [*((a, Parameter.POSITIONAL_ONLY) for a in args.posonlyargs), *((a, Parameter.POSITIONAL_OR_KEYWORD) for a in args.args)]
    first_default = len(positional) - len(args.defaults)
    parameters = [
        Parameter(a.arg, kind, default=... if i >= first_default else Parameter.empty) for i, (a, kind) in enumerate(positional)
    ]  # fmt: skip
    if args.vararg:
        parameters.append(Parameter(args.vararg.arg, Parameter.VAR_POSITIONAL))
    for a, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        parameters.append(Parameter(a.arg, Parameter.KEYWORD_ONLY, default=Parameter.empty if default is None else ...))
    if args.kwarg:
        parameters.append(Parameter(args.kwarg.arg, Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)
