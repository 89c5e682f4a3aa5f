//! Tests of tokenizers against Python's package `tokenizers` 0.22.1
//! (fixtures/oracles/tokenizers.json): the tokenizers of GPT-2, BERT and T5, trained on a small
//! text.

use amp_core::{
    data::{Collate, MapDataset, Tokenizer, Tokens},
    prelude::*,
    random::Rng,
};
use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    support::{
        message,
        oracle::{integer, list, oracle, text},
    },
    tables::file,
};

fn recorded() -> Value {
    oracle!("tokenizers.json")
}

fn tokenizer(all: &Value, kind: &str) -> Result<(TempDir, Tokenizer)> {
    let (folder, path) = file("tokenizer.json", text(&all[kind], "tokenizer"));
    Ok((folder, Tokenizer::open(path)?))
}

fn lines(all: &Value) -> Vec<&str> {
    list(all, "lines").iter().map(|line| line.as_str().expect("a text")).collect()
}

fn numbers(value: &Value) -> Vec<Vec<i64>> {
    serde_json::from_value(value.clone()).expect("lists of integers")
}

fn rows(tensor: &Tensor) -> Vec<Vec<i64>> {
    Vec::<Vec<i64>>::try_from(tensor.to_kind(Kind::Int64)).expect("a matrix")
}

#[track_caller]
fn same(tokens: &Tokens, expected: &Value) {
    let Tokens { input_ids, token_type_ids, attention_mask } = tokens;
    assert_eq!(rows(input_ids), numbers(&expected["ids"]));
    assert_eq!(rows(token_type_ids), numbers(&expected["type_ids"]));
    assert_eq!(rows(attention_mask), numbers(&expected["attention_mask"]));
    let kinds = [input_ids, token_type_ids, attention_mask].map(Tensor::kind);
    assert_eq!(kinds, [Kind::Int64, Kind::Int64, Kind::Bool]);
}

/// The tokenizer gives the same results as Python's. The test compares the ids with and without
/// special tokens, and the decoded text. It also compares batches of texts and of pairs of texts,
/// truncated and padded on each side. The batches are padded to the longest text, to a given
/// length, or to a multiple of a number.
#[rstest]
fn text_is_encoded_as_by_python(
    #[values("byte_level", "word_piece", "unigram")] kind: &str,
) -> Result<()> {
    let all = recorded();
    let (_folder, tokenizer) = tokenizer(&all, kind)?;
    let own = &all[kind];
    assert_eq!(tokenizer.vocabulary(), integer(own, "vocabulary"));
    let (with, without) = (numbers(&own["plain"]), numbers(&own["without_special"]));
    let plain = tokenizer.clone().without_special_tokens();
    for (at, line) in lines(&all).into_iter().enumerate() {
        assert_eq!(tokenizer.ids(line)?, with[at], "{line}");
        assert_eq!(plain.ids(line)?, without[at], "{line}");
        assert_eq!(
            tokenizer.decode(&with[at])?,
            list(own, "decoded")[at].as_str().expect("a text")
        );
    }
    let pairs = list(&all, "pairs").iter().map(|pair| {
        let one = |at: usize| pair[at].as_str().expect("a text");
        (one(0), one(1))
    });
    let pairs: Vec<(&str, &str)> = pairs.collect();
    for batch in list(own, "batches") {
        let mut tokenizer = tokenizer.clone().padded(text(batch, "pad"))?;
        tokenizer = match batch["length"].as_u64() {
            Some(length) => tokenizer.truncated(length as usize)?.padded_to(length as usize),
            None => tokenizer.truncated(12)?,
        };
        if let Some(multiple) = batch["multiple"].as_u64() {
            tokenizer = tokenizer.padded_to_multiple_of(multiple as usize);
        }
        if text(batch, "side") == "left" {
            tokenizer = tokenizer.padded_left();
        }
        same(&tokenizer.batch(&lines(&all))?, &batch["texts"]);
        same(&tokenizer.batch_of_pairs(&pairs)?, &batch["pairs"]);
    }
    Ok(())
}

/// A data set of sentences. Its function `collate` pads the sentences of a batch.
struct Sentences(Tokenizer, Vec<String>);

#[derive(Batch)]
struct Sentence {
    #[batch(ids)]
    ids: Tensor,
    #[batch(mask)]
    mask: Option<Tensor>,
}

impl MapDataset for Sentences {
    type Example = Sentence;

    fn len(&self) -> i64 {
        self.1.len() as i64
    }

    fn get(&self, index: i64, _: &mut Rng) -> Result<Sentence> {
        let ids = Tensor::f_from_slice(&self.0.ids(&self.1[index as usize])?)?;
        Ok(Sentence { ids, mask: None })
    }

    fn collate(&self, examples: &[(i64, Sentence)], _: &mut Rng) -> Result<AnyBatch> {
        Collate::new().pad(self.0.pad("ids")?.attention_mask("mask")).batch(examples)
    }
}

/// A batch whose examples are padded in `collate` equals the batch that the tokenizer makes of the
/// same texts.
#[test]
fn examples_are_padded_when_they_are_collated() -> Result<()> {
    let all = recorded();
    let (_folder, tokenizer) = tokenizer(&all, "word_piece")?;
    let lines: Vec<String> = lines(&all).into_iter().map(str::to_owned).collect();
    let expected = tokenizer.batch(&lines)?;
    let indices: Vec<i64> = (0..lines.len() as i64).collect();
    let seen = Sentence::from_any(&Sentences(tokenizer, lines).shared().gather(&indices)?)?;
    assert_eq!(rows(&seen.ids), rows(&expected.input_ids));
    assert_eq!(rows(&seen.mask.expect("a mask")), rows(&expected.attention_mask));
    Ok(())
}

#[test]
fn what_cannot_be_encoded_is_refused() -> Result<()> {
    let all = recorded();
    let (folder, tokenizer) = tokenizer(&all, "byte_level")?;
    let path = folder.path().join("tokenizer.json");
    let says = |text: String, says: &str| {
        assert!(text.replace(&path.display().to_string(), "FILE").starts_with(says), "{text}");
    };
    let different = "FILE: texts of different lengths need padding, but the tokenizer declares no";
    says(message(tokenizer.batch(&["We the People", "of"])), different);
    says(message(tokenizer.pad("ids")), different);
    says(message(tokenizer.batch(&[] as &[&str])), "a batch of tokens needs at least one text");
    says(message(tokenizer.clone().padded("[PAD]")), "FILE: the tokenizer has no token `[PAD]`");
    says(message(tokenizer.decode(&[5, -1])), "FILE: one of the ids [5, -1] belongs to no token");
    says(message(tokenizer.decode(&[400])), "FILE: one of the ids [400] belongs to no token");
    let (folder, tokenizer) = self::tokenizer(&all, "word_piece")?;
    let text = message(tokenizer.truncated(3));
    assert!(
        text.contains(
            "texts are truncated to 3 tokens, but the tokenizer adds 3 special tokens: choose"
        ),
        "{text}"
    );
    let path = folder.path().join("other.json");
    std::fs::write(&path, "{\"version\": \"1.0\"}").expect("room on the disk");
    let text = message(Tokenizer::open(&path));
    assert!(text.contains("other.json: not a tokenizer.json: ") && !text.contains('\n'), "{text}");
    Ok(())
}
