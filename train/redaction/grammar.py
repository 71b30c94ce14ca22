"""What stands between a secret's name and its value, in the languages in which configs, code and
logs are written.
"""

import re

LONGEST_NAME = 200

STEM = re.compile(
    r"(?i)key|token|secret|pass|pwd|auth|cred|cookie|dsn|conn|webhook|jwt|bearer|signature|sess|otp|psk|sasur|keytab"
    r"|kennwort|contrasena|senha|parola|mnemonic"
    r"|(?:pw|pat|sas|sig)(?![a-z])"
)
REST = re.compile(rf"[\w.-]{{0,{LONGEST_NAME}}}")
_QUOTED_TYPE = r"[\"'][\w.\[\]| ]{1,60}[\"']"
_TYPE = r"[\w.]{1,60}(?:\[[\w.,| ()\[\]]{0,80}\])?"
_BEGINS = r"(?:[rbf]?[\"'(]|\w+\()"
JOINT = re.compile(
    # What closes ["name"] or "name", a type, and a sign.
    r"(?P<close>(?:&quot;|&\#3[49];|%2[27])?\\{0,3}[\"'`]?[ \t]?[\])]?[ \t]{0,20})"
    rf"(?::[ \t]{{0,3}}(?:{_TYPE}(?:[ ]?\|[ ]?{_TYPE}){{0,4}}|{_QUOTED_TYPE})[ ]?(?==[ \t]*{_BEGINS}))?"
    r"(?P<sign>:=|=>|<-|==|!=|:-|\|\||\?\?|=|:|,|%3[AaDd]|>|&gt;)\*{0,2}[ \t]{0,20}(?:&quot;|&\#3[49];|%2[27])?"
)
SPACED = re.compile(r"(?P<close>\\?[\"'`]?)[ \t]+(?P<be>(?:is|was|-|\|)[ \t]+)?(?=[^\s=:,])")
LATER = re.compile(
    # What stands beside the name: add_argument("--token", default="x"), {"name": "TOKEN", "value":
    # "x"}.
    r"\\?[\"'`]?[\])]?[ \t]*,?[ \t]*(?:\n[+\- ]?[ \t]*)?(?:\w+=[^,()\n]{1,60},[ \t]*){0,3}"
    r"\\?[\"']?(?:default|value|fallback|const)\\?[\"']?[ \t]*[=:][ \t]*(?=\S)"
)
BLOCK = re.compile(
    r"(?:[!&]\S{0,60}[ \t]+){0,2}[|>][+\-\d]{0,2}[ \t]*(?:#.*)?(?=\n)|(?:[!&]\S{0,60}[ \t]*){1,2}(?=\n)"
)
"""YAML, with a tag or an anchor before it."""
BELOW = re.compile(
    r"[\"'`]?(?:[ \t]+is)?[ \t]*(?P<sign>[:=]?)[ \t|]*\\?\n(?P<rule>[+ ]?[ \t|:+-]*\n)?"
    r"[+\-]?[ \t|]*(?P<later>[:=]?)[ \t]*"
    r"(?P<value>[^\s|]+)[ \t|]*(?=\n|\Z)"
)
"""The value alone on the next line, or below a line of dashes."""
NEW_LINE = re.compile(r"\\?[ \t]*(?:#.*)?(?=\n)")
LINE_START = re.compile(
    r"[+\-! ]?[ \t]*(?:(?:-|\?|export|set|setenv|env|ENV|ARG|%env|#+|//|\*|;|>|\$)[ \t]+|[\"'{#;])*-{0,2}"
)
SETTER = re.compile(
    r"(?:^[+\-]?|[ \t])(?:ENV|ARG|setenv|setx|set(?: -\w+)?|%env|export|\#define|-e|--env)[ \t]+\Z",
    re.IGNORECASE,
)
CALL = re.compile(r"\w\([ \t]*[rbf]?\\?[\"']\Z")
EXPRESSION = re.compile(r"[(\[]|\w\.[a-z_]|\{\w")
WORD = re.compile(r"\S+")
TAG = re.compile(r"<\Z|<[\w:]{1,20}[ ](?:name|key|id)=[\"']\Z")
"""XML: <password>x</password>, <string name="password">x</string>"""
WHOLE_LINE = re.compile(r"(?i)(?:[\w-]*-)?(?:authorization|cookie|passphrase)")
"""What such a name holds has spaces in it."""
WRAPPED = re.compile(
    r"\w*(?:secret|str|bytes|decode)\w*\([ \t]*(?=[rbf]?[\"'])"
    r"|\w+\((?:\w+=[^,()\n]{1,60},[ \t]*){0,3}(?:default|value)=",
    re.IGNORECASE,
)
"""SecretStr("x")"""
QUOTE = re.compile(r"[\"']")
BARE = re.compile(r"[^\s,;)\]}#]+")
