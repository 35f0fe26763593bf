"""What `langchain-openai` does with our server. Arguments: the address, and a key."""

from __future__ import annotations

import sys

from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import SecretStr

address, key = sys.argv[1:3]
given = {"base_url": f"{address}/v1", "api_key": SecretStr(key), "model": "tiny", "max_retries": 0}

llm = OpenAI(**given, seed=7, max_tokens=12)  # type: ignore[arg-type]
text = llm.invoke("Once upon a time")
assert text and "".join(llm.stream("Once upon a time")) == text
assert len(llm.batch(["Once", "Suddenly"])) == 2
result = llm.generate(["Once", "Suddenly"])
assert result.llm_output is not None and result.llm_output["token_usage"]["completion_tokens"] == 24

chat = ChatOpenAI(**given, seed=3, max_tokens=9)  # type: ignore[arg-type]
answer = chat.invoke([("system", "Be brief."), ("human", "Hello")])
assert answer.content and answer.usage_metadata is not None
streamed = list(chat.stream([("system", "Be brief."), ("human", "Hello")]))
assert "".join(str(part.content) for part in streamed) == answer.content

vectors = OpenAIEmbeddings(**given, check_embedding_ctx_length=False).embed_documents(["Hello", "there"])  # type: ignore[arg-type]
assert len(vectors) == 2 and len(vectors[0]) == 256
print("fine")
