"""HotpotQA (Yang et al., arXiv 1809.09600): questions that take two Wikipedia paragraphs, beside eight others."""

from __future__ import annotations

from meta_training.document import Question
from meta_training.tasks.multi_document import MultiDocument, Sample

__all__ = ["HotpotQA"]


class HotpotQA(MultiDocument):
    """The distractor setting; both paragraphs, each under its title, support an answer."""

    name = "hotpot-qa"
    published = "hotpotqa/hotpot_qa"
    configuration = "distractor"

    def read(self, index: int) -> Sample | None:
        """One question: its paragraphs under their titles, in the order of the supporting facts."""
        row = self.rows[index]
        paragraphs = dict(zip(row["context"]["title"], row["context"]["sentences"], strict=True))
        facts = row["supporting_facts"]["title"]
        texts = {title: f"{title}\n{''.join(sentences).strip()}" for title, sentences in paragraphs.items()}
        relevant = tuple(dict.fromkeys(texts[title] for title in facts if title in texts))
        if not relevant:
            return None
        return Sample(
            questions=(Question(row["question"], row["answer"], support=relevant),),
            relevant=relevant,
            others=tuple(text for text in texts.values() if text not in relevant),
        )
