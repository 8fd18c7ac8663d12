"""Options that several commands take, each said once."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from prefheads import types

Model = Annotated[
    str,
    Option(
        help='Folder of a model, hub id, "bundled", or a preset such as llama-3-8b-instruct.',
        metavar="MODEL",
    ),
]
Data = Annotated[
    Path,
    Option(
        help="JSONL of examples, a LaMP questions file or its folder, a LongLaMP split; "
        '"bundled" are 24 made-up people.'
    ),
]
Out = Annotated[Path, Option(help="Folder of the run; resumes what is in it.")]
Run = Annotated[Path, Option(help="Folder that `fit` or `discover` wrote.")]
Limit = Annotated[int | None, Option(min=1, help="Use only the first so many examples.")]
Items = Annotated[int, Option(min=1, help="Profile items that retrieval keeps (LaMP).")]
Retrieval = Annotated[
    types.Retrieval, Option(help="How profile items of LaMP and LongLaMP are chosen.")
]
Scope = Annotated[
    types.Scope, Option(help="Act where the response is predicted, or at every position.")
]
Target = Literal["head", "profile"]  # of those that steering knows, what discovery measures
Reference = Annotated[
    Literal["none", "no-profile", "other-profile"],
    Option(help="Scores to subtract, measured with this prompt instead."),
]
MinSamples = Annotated[int, Option(min=1, help="Discovery samples that a cluster needs.")]
Encoder = Annotated[str, Option(help='Sentence encoder: "bundled", a folder or a hub id.')]
Host = Annotated[str, Option(help='Address to listen at; "0.0.0.0" lets the whole network in.')]
Port = Annotated[int, Option(min=0, max=65535, help="Port; 0 takes a free one.")]
Seed = Annotated[int, Option(min=0, help="Fixes every random choice.")]
Device = Annotated[str, Option(help='"cpu", "cuda", "cuda:1"; "auto" takes a GPU if any.')]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    Option(help='"auto": as saved, on a CPU float32.'),
]
Quiet = Annotated[bool, Option("--quiet", help="No progress on standard error.")]
Json = Annotated[bool, Option("--json", help="Print the result as JSON on stdout.")]
