"""Which names stand before a secret, and which only look so."""

from train.redaction.names import Grade, grade

SECRET = """
    token hf_token hfToken HF_TOKEN use_auth_token AWS_SESSION_TOKEN password DB_PASSWORD dbpassword passwd secret
    client_secret api_key apikey apiKey wandb.api_key API_KEY_2 AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY private_key
    auth basic_auth authorization credential credentials SENTRY_DSN X-Amz-Signature --hf-token pass DB_PASS smtp_pass
    pwd user_pwd GITHUB_PAT pat jwt bearer openai_key stripe_key STRIPE_KEY aws_key hf_key connection_string conn_str
    sas_token sig cookie session_id secret_key_base private_key_pem PASSWORD_DB token_value smtpPassword accessKey
    dbpass x-api-key APIKey OPENAI_API_KEY credentials.user webhook_url openaikey PGPASSWORD MYSQL_PWD
"""
HARMLESS = """
    tokens_seen tokenizer max_tokens num_tokens token_ids pad_token eos_token TOKENIZERS_PARALLELISM monkey keyboard
    author authority XAUTHORITY secretary auth_method SSH_AUTH_SOCK password_file lr compass patience path pattern keys
    pass_through bypass sort_key primary_key weight_key PWD OLDPWD public_key passes forward_pass secrets.py token_type
    key_padding_mask keypoints passenger hotkey tokenize special_tokens tokens signal design sigma assignment sigmoid
    passage patch pathology dispatch author_name classification credentials_path token.txt SLURM_JOB_ID TokenEmbedding
"""


def test_secret_names() -> None:
    assert [
        name for name in SECRET.split() if grade(name) not in (Grade.SURE, Grade.NUMBERED)
    ] == []


def test_names_that_are_not_secret() -> None:
    assert [name for name in HARMLESS.split() if grade(name) is not Grade.NO] == []


def test_names_whose_value_decides() -> None:
    names = ["key", "acme_key", "TOKEN_GITHUB", "auth_header", "api_tokens"]
    assert {grade(name) for name in names} == {Grade.MAYBE}
