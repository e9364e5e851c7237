"""HotpotQA (Yang et al., arXiv 1809.09600): questions that take two Wikipedia paragraphs, beside eight others."""

from __future__ import annotations

from meta_training.document import Question
from meta_training.tasks.multi_document import MultiDocument, Sample

__all__ = ["HotpotQA"]


class HotpotQA(MultiDocument):
    """The distractor setting; each paragraph from its title to the last of the set's own facts supports the answer."""

    name = "hotpot-qa"
    published = "hotpotqa/hotpot_qa"
    configuration = "distractor"

    def read(self, index: int) -> Sample | None:
        """One question: its paragraphs under their titles, in the order of the supporting facts."""
        row = self.rows[index]
        paragraphs = dict(zip(row["context"]["title"], row["context"]["sentences"], strict=True))
        # A few of its facts name a sentence that the paragraph does not have.
        reach: dict[str, int] = {}
        for title, at in zip(row["supporting_facts"]["title"], row["supporting_facts"]["sent_id"], strict=True):
            if title in paragraphs:
                reach[title] = max(reach.get(title, 0), at + 1 if at < len(paragraphs[title]) else 0)
        titles = list(reach)
        if not titles:
            return None
        texts = {title: f"{title}\n{''.join(sentences).strip()}" for title, sentences in paragraphs.items()}
        support = [f"{title}\n{''.join(paragraphs[title][:end]).strip()}" for title, end in reach.items() if end]
        return Sample(
            questions=(Question(row["question"], row["answer"], support=tuple(support)),),
            relevant=tuple(texts[title] for title in titles),
            others=tuple(text for title, text in texts.items() if title not in titles),
        )
