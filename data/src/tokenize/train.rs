//! Makes a tokenizer from text: byte-level BPE by the `tokenizers` crate.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{AddedToken, TokenizerBuilder};
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use crate::error::{Error, InputError, Result};
use crate::publication::{Publication, folder_of};
use crate::tokenize_corpus::{DocumentOptions, Progress, for_each_text};

/// What to train on, and how large the vocabulary is to be.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Files, folders and globs, as [`crate::list_inputs`] takes them.
    pub inputs: Vec<String>,
    /// How documents are found in them.
    pub documents: DocumentOptions,
    /// The `tokenizer.json` to write.
    pub out: PathBuf,
    /// Tokens in the vocabulary, the 256 bytes and `special_tokens` included.
    pub vocab_size: u32,
    /// Pairs seen less often are not merged; 2 is usual.
    pub min_frequency: u64,
    /// Tokens that no text gives, such as `<|endoftext|>`; they get the lowest ids.
    pub special_tokens: Vec<String>,
}

/// Trains a byte-level BPE with GPT-2's way to cut words, and publishes it as a `tokenizer.json`.
/// The same text gives the same file, on any number of cores.
///
/// The distinct words of the text and their counts are held in memory, the text is not.
///
/// # Errors
/// [`InputError::Option`] if `vocab_size` has no room for the bytes and special tokens, those of
/// [`crate::tokenize_corpus`] for the inputs, [`Error::Interrupted`] if `stop` is set while text
/// is read, [`Error::TokenizerLoad`] if the crate fails.
pub fn train_tokenizer(
    options: &TrainOptions,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<()> {
    let least = 256 + options.special_tokens.len();
    if (options.vocab_size as usize) < least {
        return Err(InputError::Option {
            key: "vocab_size",
            found: options.vocab_size.to_string(),
            expected: "at least 256 and the number of special tokens",
        }
        .into());
    }
    let refuse = |cause: tokenizers::Error| Error::TokenizerLoad {
        path: options.out.clone(),
        cause: cause.to_string(),
    };
    let byte_level = ByteLevel::new(false, false, true);
    let tokenizer: tokenizers::Result<
        tokenizers::TokenizerImpl<
            BPE,
            NormalizerWrapper,
            PreTokenizerWrapper,
            PostProcessorWrapper,
            DecoderWrapper,
        >,
    > = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(byte_level.into()))
        .with_decoder(Some(byte_level.into()))
        .build();
    let mut tokenizer = tokenizer.map_err(refuse)?;
    let special = options.special_tokens.iter().map(|token| AddedToken::from(token, true));
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(options.vocab_size as usize)
        .min_frequency(options.min_frequency)
        .special_tokens(special.collect())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let scratch = folder_of(&options.out);
    // The crate asks for texts; they come from a thread that reads ahead by a few of them.
    const TEXTS_AHEAD: usize = 64;
    let (sender, texts) = sync_channel::<String>(TEXTS_AHEAD);
    let trained = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            for_each_text(&options.inputs, &options.documents, (scratch, progress), &mut |text| {
                if stop.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                // The crate hangs up only when it fails, and says so itself.
                let _ = sender.send(text);
                Ok(())
            })
        });
        let trained = tokenizer.train(&mut trainer, texts.into_iter()).map(|_| ());
        // A failed reading is the reason of whatever came of the training.
        reader.join().expect("reading does not panic").and_then(|()| trained.map_err(refuse))
    });
    trained?;
    let text = tokenizer.to_string(true).map_err(refuse)?;
    let mut file = Publication::create(&options.out, 0)?;
    file.write(text.as_bytes())?;
    file.publish(&[])
}
