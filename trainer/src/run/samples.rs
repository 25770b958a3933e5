//! The text that a run draws at its end.

use grove_data::Tokenizer;

use super::Run;
use crate::corpus;
use crate::error::Error;
use crate::eval_point::to_eval_point;
use crate::sample::{Sampling, continue_tokens};
use crate::step_numbers::sum_integers;

impl Run<'_> {
    /// Prints a sample of text, which all ranks compute. A rank without the tokenizer costs the
    /// sample, not the run.
    pub(super) fn sample(&mut self) -> Result<(), Error> {
        let Some(sample) = &self.plan.sample else { return Ok(()) };
        self.clock.show("sample");
        let prompt = self.prompt(&sample.prompt);
        let missing = i64::from(prompt.is_err());
        let missing = sum_integers(self.collective, &[missing], "ranks without a prompt")?[0];
        let (tokenizer, prompt) = match prompt {
            Ok(prompt) if missing == 0 => prompt,
            Ok(_) => {
                let line = format!("no sample: {missing} rank(s) cannot load the tokenizer");
                self.sinks.progress().warn(&line);
                return Ok(());
            }
            Err(error) => {
                self.sinks.progress().warn(&format!("no sample: {error}"));
                return Ok(());
            }
        };
        let sampling = Sampling {
            num_tokens: sample.tokens,
            vocab_size: tokenizer.vocab_size(),
            temperature: sample.temperature,
            top_k: sample.top_k.unwrap_or(0),
            seed: self.plan.seed,
        };
        to_eval_point(&self.state.units, &self.recipe.rules, &mut self.traffic)?;
        let layers = self.recipe.layers(&self.state);
        let window = self.plan.batch.sequence_length;
        let how = (&sampling, self.stop);
        let tokens = continue_tokens(layers, &prompt, window, how, &mut self.traffic)?;
        match tokenizer.decode(&tokens) {
            Ok(text) => self.sinks.progress().note(&format!("a sample:\n{}", text.trim_end())),
            Err(error) => self.sinks.progress().warn(&format!("no sample: {error}")),
        }
        Ok(())
    }

    /// The tokenizer, and the tokens of a text; at least one.
    fn prompt(&self, text: &str) -> Result<(Tokenizer, Vec<u32>), Error> {
        let wanted = self.plan.data.tokenizer.as_ref();
        let wanted = wanted.expect("the plan refuses samples without a tokenizer");
        let tokenizer = corpus::tokenizer(self.plan, wanted)?;
        let prompt = tokenizer.encode(text)?;
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        Ok((tokenizer, prompt))
    }
}
