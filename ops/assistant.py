"""The served model: text in, the assistant's text out, by the same prompt as in training and benchmark.

MLflow stores this file as the model's code (no pickle), beside the weights and prompt.json that
ops/package.py puts there, so it imports nothing of Lathe.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class Assistant(PythonModel):  # type: ignore[misc]
    """Greedy answers of a causal chat model."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load weights, tokenizer and prompt from the model's own folder."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = context.artifacts["model"]
        self.prompt = json.loads(Path(context.artifacts["prompt"]).read_text(encoding="utf-8"))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        base = context.artifacts.get("base")  # only beside an adapter
        model = AutoModelForCausalLM.from_pretrained(base or folder)
        self.model = (_with_adapter(model, folder) if base else model).eval()

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints
        """Answer each row of column `input`; returns a list of strings, in order."""
        return [self._answer(str(text)) for text in model_input["input"]]

    def _answer(self, text: str) -> str:
        messages = [*self.prompt["head"], {"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        encoded = self.tokenizer(rendered, return_tensors="pt", add_special_tokens=False)
        output = self.model.generate(
            **encoded,
            max_new_tokens=self.prompt["max_new_tokens"],
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        answer = output[0, encoded["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(answer, skip_special_tokens=True)).strip()


def _with_adapter(model: Any, folder: str) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder)


mlflow.models.set_model(Assistant())
