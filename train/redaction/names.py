"""Which names stand before a secret: of keys, options, variables, arguments, columns of a query."""

import re
from enum import Enum
from functools import lru_cache


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class Grade(Enum):
    """What a name says of its value."""

    SURE = "whatever stands there is a secret"
    NUMBERED = "a secret, unless it is a short number: `token: 5`"
    MAYBE = "a secret where the value looks like one: `acme_key: labels` names a column"
    NO = "no secret"


SURE = words(
    "pass passwd password passwords passphrase passcode pwd passwort psk secret secrets credential "
    "credentials cred creds authorization apikey apikeys jwt jwts bearer dsn pat htpasswd userpass "
    "keytab webhook otp totp kennwort contrasena senha parola mnemonic"
)
NUMBERED = words("token auth oauth signature sig sas cookie cookies pw")
"""Words that also stand before a number or a switch: `max_token: 5`, `auth: true`."""

KEYS = words(
    "api access secret private signing signature encryption account deploy ssh master client "
    "service auth storage shared subscription admin license licence rsa dsa gpg pgp aes hmac tls "
    "ssl root session server app application host user personal sas push instrumentation ingest "
    "write read project team org bearer decryption cipher openai anthropic claude cohere mistral "
    "groq gemini google gcp azure aws s3 r2 minio gcs hf huggingface wandb comet neptune clearml "
    "mlflow kaggle replicate together deepseek openrouter perplexity xai nvidia ngc pinecone "
    "weaviate qdrant elastic elasticsearch datadog dd sentry newrelic pagerduty stripe paypal "
    "square braintree twilio sendgrid mailgun mailchimp postmark slack discord telegram github "
    "gitlab bitbucket algolia mapbox X cloudflare digitalocean linode heroku vercel netlify npm "
    "pypi docker quay serper serpapi tavily langchain langsmith langfuse helicone voyage jina "
    "assemblyai deepgram elevenlabs stability fal modal runpod lambda vast paperspace coreweave "
    "roboflow labelbox scale wolfram nasa polygon binance coinbase snowflake databricks mongo "
    "mongodb redis postgres mysql rabbitmq kafka vault consul jira atlassian linear notion "
    "airtable zendesk shopify okta auth0 ldap smtp imap ftp sftp vpn wifi wpa ssm kms "
)
"""What stands before `key` where it opens something."""

NO_KEYS = words(
    "sort primary foreign weight weights column col label labels text input inputs output outputs "
    "image images group partition row dict state hash join index lookup order metric monitor score "
    "loss target targets prediction feature features query qk kv attention num size count cache "
    "public hot shortcut arrow answer config section yaml json map meta data dataset sample "
    "samples batch id name value field unique natural composite surrogate music piano major minor "
    "on in by per first last next prev same other each no not missing unknown duplicate bad "
    "invalid expected new old max min default tensor param parameter parameters buffer module "
    "layer ema"
)
"""What stands before `key` where it names a place."""

NO_TOKENS = words(
    "pad eos bos unk sep cls mask image video audio start end stop begin first last next previous "
    "per special max min num new added additional unexpected expected invalid unknown bad word sub "
    "subword each one every single same document prefix suffix separator newline space vision boi "
    "eoi bom eom eot sot fim prompt target source language lang task dist distill distillation "
    "register reg class cached numeric"
)
"""A tokenizer's `pad_token` is no secret, and neither is what a parser did not expect."""

NO_PASSES = words(
    "forward backward first second third single one two multi by low high band all full data test "
    "last next each every per sync decoder encoder"
)
NO_SIGNATURES = words("function method call class forward type")

TAILS = words(
    "file files path paths dir directory folder name names field fields column columns length len "
    "policy prompt method methods class type types mode ids count counts size sizes sock agent "
    "provider manager store backend scope scopes expiry expires expiration ttl timeout lifetime "
    "rotation required enabled disabled optional url uri endpoint host port server format pattern "
    "regex index position positions embedding embeddings embed weight weights loss logits mask dim "
    "limit budget rate usage cost cls error errors kind plus rings ring through ing es"
)
"""Words that turn a secret's name into that of something about it: token_type, password_file."""

_INSIDE = words("password passwd passphrase secret credential credentials apikey jwt pwd")
"""Words that mean a secret wherever they stand in a name: PASSWORD_DB."""
_FIRST = words("token auth apikey")
"""Words that may mean one where they come first: TOKEN_GITHUB."""

_SQUEEZED = re.compile(
    r"(password|passwd|passphrase|passcode|secret|secretid|credentials?|pwd|dsn"
    r"|webhook(url)?|sasur[li]|secreturl"  # addresses that open something
    r"|(api|access|secret|private|signing|encryption|account|deploy|ssh|auth|master|client)keys?"
    r"|accesskeyid"
    r"|connectionstring|connstr|sessionid|sessid"
    r"|(git\w{0,3}|gh|my|azure)pat"  # personal access token
    r"|(hf|auth|access|api|refresh|bearer|session|bot|user|my|git\w{0,3}|gh|wandb)token"
    r"|(db|smtp|user|my|ftp|mail|ldap|root|admin|pg|sql|redis|proxy|login|ssh|vpn|wifi)pass)$"
)
"""Endings of names without a sign of where a word ends: dbpassword."""
_COMPOUND = re.compile(r"privatekey|secretkey|apikey|accesskey")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
"""HTTP, Token, token and 2 of HTTPToken_token2."""
_ENDINGS = words(
    "value val str string text raw plain b64 base64 hex encoded env var prod dev staging test v"
)
"""Words that may follow without a change of what is meant: token_value, password_prod."""
_FILES = words(
    "py pyc txt json jsonl yaml yml md pem sh toml cfg ini csv log ipynb pt bin safetensors html js"
)
_HOME = frozenset({"PWD", "OLDPWD"})
"""Variables of the shell that hold a folder."""


@lru_cache(maxsize=10_000)
def grade(name: str) -> Grade:
    """What a name says of its value: api_key, hfToken, --password, DB_PASS_2.

    A dotted path is graded part by part: what lies below `credentials` belongs to it.
    """
    parts = [part for part in name.split(".") if part]
    # secrets.py:12
    if len(parts) > 1 and parts[-1].lower() in _FILES:
        return Grade.NO
    grades = [_grade_part(part) for part in parts]
    for strictest in (Grade.SURE, Grade.NUMBERED, Grade.MAYBE):
        if strictest in grades:
            return strictest
    return Grade.NO


def is_secret_name(name: str) -> bool:
    """Whether what stands under this name is a secret, whatever it looks like."""
    return grade(name) in (Grade.SURE, Grade.NUMBERED)


def _grade_part(part: str) -> Grade:
    of_name = [word.lower() for word in _WORD.findall(part)]
    # API_KEY_2
    while of_name and of_name[-1].isdigit():
        of_name.pop()
    if not of_name or part in _HOME:
        return Grade.NO
    # With its ending too: `connection_string` is a secret, and `string` alone means nothing.
    if _SQUEEZED.search("".join(of_name)):
        return Grade.SURE
    while len(of_name) > 1 and (of_name[-1] in _ENDINGS or of_name[-1].isdigit()):
        of_name.pop()
    return _grade_words(of_name)


def _grade_words(of_name: list[str]) -> Grade:
    last = of_name[-1]
    before = of_name[-2] if len(of_name) > 1 else ""
    if _SQUEEZED.search("".join(of_name)):
        return Grade.SURE
    if last in TAILS:
        return Grade.NO
    if last in SURE:
        return Grade.NO if last == "pass" and before in NO_PASSES else Grade.SURE
    if last in NUMBERED:
        harmless = NO_TOKENS if last == "token" else NO_SIGNATURES
        return Grade.NO if before in harmless else Grade.NUMBERED
    if last == "tokens":
        return Grade.MAYBE if before in KEYS else Grade.NO
    if last.endswith(("key", "keys")):
        return _grade_key(last, before)
    if _INSIDE.intersection(of_name) or _COMPOUND.search("".join(of_name)):
        return Grade.SURE
    return Grade.MAYBE if of_name[0] in _FIRST and len(of_name) > 1 else Grade.NO


def _grade_key(last: str, before: str) -> Grade:
    """Of `api_key`, `api_keys` and `apikey`."""
    opener = before if last in ("key", "keys") else last.removesuffix("s").removesuffix("key")
    if opener in KEYS:
        return Grade.SURE if last.endswith("key") else Grade.MAYBE
    if last != "key" or opener in NO_KEYS:
        return Grade.NO
    return Grade.MAYBE
