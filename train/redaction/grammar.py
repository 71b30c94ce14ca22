"""What stands between a secret's name and its value, in configs, code and logs of many languages.

The patterns are made of pieces, each with what it is for behind it.
"""

import re

LONGEST_NAME = 200

# The name

STEM = re.compile(
    r"(?i)key|token|secret|pass|pwd|auth|cred|cookie|dsn|conn|webhook|jwt|bearer|signature|sess|otp"
    r"|psk|sasur|keytab"
    r"|kennwort|contrasena|senha|parola|mnemonic"  # in German, Spanish, Portuguese, Italian
    r"|(?:pw|pat|sas|sig)(?![a-z])"
)
"""A part of every secret's name: where to look closer."""
REST = re.compile(rf"[\w.-]{{0,{LONGEST_NAME}}}")

# The sign, and the value behind it

_QUOTED_TYPE = r"[\"'][\w.\[\]| ]{1,60}[\"']"
_TYPE = r"[\w.]{1,60}(?:\[[\w.,| ()\[\]]{0,80}\])?"
_LITERAL = r"(?:[rbf]?[\"'(]|\w+\()"
_ENCODED_QUOTE = r"(?:&quot;|&\#3[49];|%2[27])?"  # in HTML, in a URL
JOINT = re.compile(
    rf"(?P<close>{_ENCODED_QUOTE}"
    r"\\{0,3}[\"'`]?[ \t]?"  # a quote, maybe escaped: "name"
    r"[\])]?[ \t]{0,20})"  # ["name"]
    # A type of Python, where a literal follows: name: str | None = "..."
    rf"(?::[ \t]{{0,3}}(?:{_TYPE}(?:[ ]?\|[ ]?{_TYPE}){{0,4}}|{_QUOTED_TYPE})"
    rf"[ ]?(?==[ \t]*{_LITERAL}))?"
    r"(?P<sign>:=|=>|<-|==|!=|:-|\|\||\?\?|=|:|,|%3[AaDd]|>|&gt;)"
    r"\*{0,2}[ \t]{0,20}"  # **name:** in Markdown
    rf"{_ENCODED_QUOTE}"
)
SPACED = re.compile(
    r"(?P<close>\\?[\"'`]?)[ \t]+"
    r"(?P<be>(?:is|was|-|\|)[ \t]+)?"  # the password is X; | password | X |
    r"(?=[^\s=:,])"
)
"""No sign, but spaces: --token X, ENV TOKEN X."""
LATER = re.compile(
    r"\\?[\"'`]?[\])]?[ \t]*,?[ \t]*"
    r"(?:\n[+\- ]?[ \t]*)?"  # on the next line, which a patch marks
    r"(?:\w+=[^,()\n]{1,60},[ \t]*){0,3}"  # other arguments between: type=str,
    r"\\?[\"']?(?:default|value|fallback|const)\\?[\"']?[ \t]*[=:][ \t]*(?=\S)"
)
"""The value beside the name: add_argument("--token", default="X"), {"name": "TOKEN", "value": "X"}."""
BLOCK = re.compile(
    r"(?:[!&]\S{0,60}[ \t]+){0,2}"  # a tag (!!binary) or an anchor (&name)
    r"[|>][+\-\d]{0,2}[ \t]*(?:#.*)?(?=\n)"
    r"|(?:[!&]\S{0,60}[ \t]*){1,2}(?=\n)"
)
"""A YAML text that begins on the next line: password: |"""
BELOW = re.compile(
    r"[\"'`]?(?:[ \t]+is)?[ \t]*(?P<sign>[:=]?)[ \t|]*\\?\n"  # the line of the name
    r"(?P<rule>[+ ]?[ \t|:+-]*\n)?"  # a line of dashes: the name heads a table
    r"[+\-]?[ \t|]*(?P<later>[:=]?)[ \t]*"  # ? name, and on the next line : value
    r"(?P<value>[^\s|]+)[ \t|]*(?=\n|\Z)"
)
"""The value alone on the next line, or below a line of dashes."""
NEW_LINE = re.compile(r"\\?[ \t]*(?:#.*)?(?=\n)")

# What stands before the name

LINE_START = re.compile(
    r"[+\-! ]?[ \t]*"  # the mark of a patch
    r"(?:"
    r"(?:-|\?|export|set|setenv|env|ENV|ARG|%env|#+|//|\*|;|>|\$)[ \t]+"  # lists, shells, comments
    r"|[\"'{#;]"
    r")*-{0,2}"
)
"""All that may stand before a name that its line begins with."""
SETTER = re.compile(
    r"(?:^[+\-]?|[ \t])"
    r"(?:ENV|ARG|setenv|setx|set(?: -\w+)?|%env|export|\#define|-e|--env)[ \t]+\Z",
    re.IGNORECASE,
)
"""Commands that set a variable."""
CALL = re.compile(r"\w\([ \t]*[rbf]?\\?[\"']\Z")
"""f("name", ..."""
TAG = re.compile(
    r"<\Z"  # <password>X</password>
    r"|<[\w:]{1,20}[ ](?:name|key|id)=[\"']\Z"  # <string name="password">X</string>
)

# The value itself

EXPRESSION = re.compile(r"[(\[]|\w\.[a-z_]|\{\w")
"""In code: a call, an index, an attribute."""
WORD = re.compile(r"\S+")
WHOLE_LINE = re.compile(r"(?i)(?:[\w-]*-)?(?:authorization|cookie|passphrase)")
"""Names whose value may have spaces in it."""
WRAPPED = re.compile(
    r"\w*(?:secret|str|bytes|decode)\w*\([ \t]*(?=[rbf]?[\"'])"  # SecretStr("X")
    r"|\w+\((?:\w+=[^,()\n]{1,60},[ \t]*){0,3}(?:default|value)=",  # Field(default="X")
    re.IGNORECASE,
)
QUOTE = re.compile(r"[\"']")
BARE = re.compile(r"[^\s,;)\]}#]+")
"""A value without quotes, in code."""
