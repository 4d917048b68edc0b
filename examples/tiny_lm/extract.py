"""Turn Python source into (function source, one-line docstring) pairs.

Everything here is pure: source text in, pairs out.  `corpus.py` feeds it the
files of the packages and removes duplicates across them.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

MIN_WORDS = 3
MAX_WORDS = 30
MAX_CODE_CHARS = 6000
MIN_PLAIN_LINES = 4

#: Path parts that mark code nobody wrote for this package's readers.
SKIPPED_PARTS = frozenset(
    "test tests testing _vendor vendor vendored _vendored third_party extern externals thirdparty "
    "migrations locale generated _generated conftest pb2 blib2to3 _pb2 openapi_client".split()
)

_ROLE = re.compile(r":[a-zA-Z][\w:+-]*:`~?\.?([^`<]*?)(?:\s*<[^`>]*>)?`")
_RST_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?")
_MD_LINK = re.compile(r"\[([^\]]+)\]\((?:https?:|#|\.|/)[^)]*\)")
_CITATION = re.compile(r"\s*\[[A-Za-z]*\d+\w*\]_?|\s*\[[A-Z]{2,}\w*\]_")
_EMPHASIS = re.compile(r"(?<![\w*])\*(\w+)\*(?![\w*])")
_TYPE_PREFIX = re.compile(r"^(?:[A-Za-z_][\w.\[\]]*|[a-z]+ or [A-Za-z]+):\s+")
_FIELD = re.compile(r"^\s*(?:[:@](?:param|return|returns|rtype|type|raises|arg)\b|>>>|\.\. |[-=~*#]{3,}\s*$)")
_SECTION = re.compile(
    r"^\s*(?:args|arguments|parameters?|params|returns?|yields?|raises|examples?|notes?|usage|inputs?|outputs?"
    r"|attributes|keyword arguments|kwargs|see also|warnings?)\s*:?\s*$",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[\w)\]'\"%])[.!](?=\s+[\"'(A-Z*]|\s*$)")
_ABBREVIATIONS = (
    "e.g",
    "i.e",
    "etc",
    "vs",
    "cf",
    "Eq",
    "Fig",
    "al",
    "approx",
    "resp",
    "Ref",
    "no",
    "Dr",
    "eg",
    "ie",
)
_BOILERPLATE = re.compile(
    r"^(?:see\b|refer to|inherit|overrid|overload|same as|docstring|alias|deprecated|todo|fixme|xxx|not implemented"
    r"|\(?internal|private|helper (?:function|method)[.]?$|abstract|placeholder|hack|noqa|like |ditto|base class"
    r"|unit test|test |tests |this (?:method|function) (?:is|should|must|has|can|was|will)|should be|must be"
    r"|this |there |default |does |fit is |\w+ \([a-zA-Z]"
    r"|subclass|constructor|init(?:iali[sz]e)?[.]?$|initiali[sz]e (?:self|the (?:class|object|instance))|magic method"
    r"|implements? |implementation of|part of|used (?:by|in|for)|called |it |we |if |when |for |note|warning)",
    re.IGNORECASE,
)
_RUN_ON = re.compile(
    r"[a-z]{2,} (?:The|This|When|If|It|We|For|Returns?|Note|See|These|Use|Given|You|In|By|Only|Can)\b"
)
_REJECTED = re.compile(
    r"https?:|www\.|\bTODO\b|\bFIXME\b|copyright|deprecated|[{}\\|]|\$|={2,}|-{3,}|->|::|\bPEP ?\d|#\d|@\w|\bGH-?\d"
    r"|docstring|superclass|base class|parent class|\bbug\b|see also|see the|as described in|as in\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z]+")
_SUBTOKEN = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_STOP_WORDS = frozenset(
    "a an the of to in on for from with and or by is are be as at it its this that if into not all any given "
    "return get set create make function method value values object self class whether new using use used which "
    "one each when has have can will".split()
)
#: Words in -s that are not third-person verbs.
_NOT_VERBS = frozenset(
    "this class process access pass its bias alias analysis basis canvas cross less loss press previous status axis "
    "various plus thus express compress suppress address focus always is has was as does across series radius address "
    "settings options arguments parameters items values keys args kwargs tuples numbers files bits indices".split()
)


@dataclass(frozen=True)
class Pair:
    """One function: its source less the docstring, and the summary (empty when it has none)."""

    name: str
    code: str
    doc: str


def is_source_path(path: str) -> bool:
    """Tell whether a package-relative path holds ordinary source: no tests, vendored or generated code."""
    parts = path.lower().replace(".py", "").split("/")
    if any(part in SKIPPED_PARTS for part in parts):
        return False
    return not (parts[-1].startswith("test_") or parts[-1].endswith(("_test", "_tests", "_pb2", "_pb2_grpc")))


def imperative(word: str) -> str:
    """Turn a third-person first word ("Returns") into the imperative ("Return"); others stay as they are."""
    lower = word.lower()
    if (
        lower in _NOT_VERBS
        or not lower.endswith("s")
        or lower.endswith(("ss", "us", "is", "'s"))
        or len(lower) < 4
    ):
        return word
    if lower.endswith("ies") and len(lower) > 4:
        return word[:-3] + "y"
    if lower.endswith(("ches", "shes", "sses", "xes", "zzes")) and lower not in ("caches",):
        return word[:-2]
    return word[:-1]


def strip_markup(text: str) -> str:
    """Remove reStructuredText and Markdown markup, keeping the words."""
    text = _ROLE.sub(lambda m: m.group(1).split(".")[-1] if "/" not in m.group(1) else m.group(1), text)
    text = _RST_LINK.sub(r"\1", text)
    text = _MD_LINK.sub(r"\1", text)
    text = _CITATION.sub("", text.replace("``", "").replace("`", "").replace("**", ""))
    text = _EMPHASIS.sub(r"\1", text)
    return text.replace("\u2019", "'").replace("\u201c", '"').replace("\u201d", '"').replace("\u2013", "-")


def first_paragraph(doc: str) -> str:
    """Return the first paragraph of a docstring as one line, cut where fields or sections begin."""
    kept: list[str] = []
    for line in doc.strip().splitlines():
        if not line.strip() and kept:
            break
        if _FIELD.match(line) or _SECTION.match(line):
            break
        if line.strip():
            kept.append(line.strip())
    return " ".join(" ".join(kept).split())


def first_sentence(text: str) -> str:
    """Return the first sentence of a line of text, without its full stop."""
    for match in _SENTENCE_END.finditer(text):
        before = text[: match.start()]
        last = before.split()[-1].strip("(") if before.split() else ""
        if last not in _ABBREVIATIONS and not (len(last) == 1 and last.isupper()):
            return before
    return text


def summary(doc: str, threshold: frozenset[str] | None = None) -> str:
    """Return a docstring's summary sentence, capitalised, with a full stop, or "" when it is no use.

    `threshold` is the set of first words (lower case) taken for verbs; a third-person form of one of them is
    turned into the imperative, so that the model learns one way of saying a thing.
    """
    if _BOILERPLATE.match(doc.strip()):
        return ""
    text = first_sentence(strip_markup(first_paragraph(doc)))
    text = _TYPE_PREFIX.sub("", text).strip(" .:;,-\"'#")
    words = text.split()
    if not MIN_WORDS <= len(words) <= MAX_WORDS or not text.isascii() or _REJECTED.search(text):
        return ""
    if not words[0][0].isalpha() or text.count("(") != text.count(")") or text.count('"') % 2:
        return ""
    # A capital word after a lower-case one that is no name: two sentences ran together, or a title.
    if _RUN_ON.search(text):
        return ""
    if text.isupper() or _BOILERPLATE.match(text) or "?" in text:
        return ""
    base = imperative(words[0])
    if base != words[0] and (threshold is None or base.lower() in threshold):
        words[0] = base
    if not words[0].isidentifier() or ("_" not in words[0] and words[0].islower()):
        words[0] = words[0][0].upper() + words[0][1:]
    return " ".join(words) + "."


def subtokens(text: str) -> set[str]:
    """Return the lower-case word parts of identifiers and prose, cut to a four-letter stem."""
    return {
        part.lower()[:4] for word in _WORD.findall(text) for part in _SUBTOKEN.findall(word) if len(part) > 1
    }


def is_grounded(code: str, doc: str) -> bool:
    """Tell whether the summary says something that the code also says: else nobody could infer it."""
    content = {w for w in _WORD.findall(doc) if w.lower() not in _STOP_WORDS and len(w) > 1}
    if not content:
        return False
    wanted = subtokens(" ".join(content))
    shared = wanted & subtokens(code)
    return len(shared) >= max(1, round(0.25 * len(wanted)))


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[int, int]:
    """Return the first and last line of a function, decorators included."""
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return first, node.end_lineno or node.lineno


def _is_stub(body: list[ast.stmt]) -> bool:
    """Tell whether a body does nothing: pass, an ellipsis or only `raise NotImplementedError`."""
    if not body:
        return True
    only = body[0]
    if len(body) > 1:
        return False
    if isinstance(only, ast.Pass) or (isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant)):
        return True
    return isinstance(only, ast.Raise) and "NotImplemented" in ast.dump(only)


def _without_docstring(lines: list[str], node: ast.FunctionDef | ast.AsyncFunctionDef, has_doc: bool) -> str:
    """Return a function's dedented source without its docstring."""
    first, last = _body_lines(node)
    kept = lines[first - 1 : last]
    if has_doc:
        doc = node.body[0]
        kept = lines[first - 1 : doc.lineno - 1] + lines[(doc.end_lineno or doc.lineno) : last]
    kept = [line for line in kept if line.strip()]
    return textwrap.dedent("\n".join(kept)).rstrip()


def functions(source: str) -> Iterator[tuple[str, str, str]]:
    """Yield (name, source without docstring, raw docstring or "") for each useful function of a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = source.expandtabs(4).splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("test"):
            continue
        raw = ast.get_docstring(node) or ""
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        if _is_stub(body) or any("overload" in ast.dump(d) for d in node.decorator_list):
            continue
        # A docstring that shares a line with code cannot be cut out by lines.
        if body is not node.body and (
            node.body[0].lineno == node.lineno or body[0].lineno == node.body[0].end_lineno
        ):
            continue
        code = _without_docstring(lines, node, body is not node.body)
        if len(code) <= MAX_CODE_CHARS * 4 and code.lstrip().startswith(("def ", "async def ", "@")):
            yield node.name, code[:MAX_CODE_CHARS], raw


def pairs(source: str, verbs: frozenset[str] | None = None) -> Iterator[Pair]:
    """Yield the pairs of a file; functions without a usable docstring come with an empty one."""
    for name, code, raw in functions(source):
        doc = summary(raw, verbs) if raw else ""
        if doc and name.startswith("__") and name.endswith("__"):
            continue
        if doc and not is_grounded(code, doc):
            continue
        if not doc and code.count("\n") < MIN_PLAIN_LINES:
            continue
        yield Pair(name, code, doc)
