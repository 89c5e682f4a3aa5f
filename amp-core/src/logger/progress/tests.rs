use std::sync::atomic::{AtomicUsize, Ordering};

use indicatif::TermLike;

use super::*;
use crate::{
    event::{EpochEnd, FitEnd, FitStart, Position, RunStart},
    hardware::Fingerprint,
    log::Logged,
    precision::Precision,
};

fn start(resumed: Option<Position>) -> Event {
    Event::FitStart(FitStart {
        run: RunStart {
            model: "Net".into(),
            data: "data".into(),
            precision: Precision::F16Mixed,
            seed: 0,
            fingerprint: Fingerprint::of(tch::Device::Cpu).expect("a CPU"),
            hyperparameters: crate::Hyperparameters::new(),
            parameters: 1,
        },
        trained_later: 0,
        max_epochs: 4,
        batches_per_epoch: 50,
        resumed,
    })
}

/// Returns the event for the batch with the index `place` in a run of 200 batches. Each batch is
/// one optimizer step on 8 examples.
fn batch(place: i64) -> Event {
    Event::Batch {
        epoch: place / 50,
        batch: place % 50,
        global_step: place.cast_unsigned() + 1,
        examples: 8,
        scale: Some(1024.0),
        done: (place + 1) as f64 / 200.0,
    }
}

fn logged(name: &str, value: f64, prog_bar: bool) -> Logged {
    Logged { name: name.into(), value, prog_bar }
}

fn end() -> Event {
    Event::FitEnd(FitEnd {
        global_step: 200,
        skipped: 0,
        replayed: 0,
        scale: Some(1024.0),
        seconds: 1.0,
        interrupted: None,
    })
}

/// Receives the text that a progress display writes.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("a text").clone()).expect("UTF-8")
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("a text").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_come_at_their_interval_and_say_where_the_run_is() {
    let written = Written::default();
    let mut bar =
        ProgressBar::lines(written.clone(), Duration::from_secs(30)).showing(["train_loss"]);
    let began = Instant::now();
    let at = |bar: &mut ProgressBar, seconds: f64, event: Event| {
        bar.follow(&event, began + Duration::from_secs_f64(seconds));
    };
    at(&mut bar, 0.0, start(None));
    // The run completes a batch every half second. The rate is measured from the end of the first
    // batch.
    for place in 0..70 {
        at(&mut bar, 0.5 * (place + 1) as f64, batch(place));
        if place == 40 {
            let values = vec![logged("train_loss", 0.25, false), logged("hidden", 1.0, false)];
            at(&mut bar, 20.5, Event::Logged { global_step: 41, values });
        }
    }
    assert_eq!(
        written.text(),
        " 30%  epoch 2/4  batch 10/50  step 60  2.00 steps/s  16.0 examples/s  left 00:01:10  scale 1024  \
         train_loss 0.2500\n"
    );
    at(&mut bar, 40.0, end());
    assert_eq!(written.text().lines().count(), 2);
}

/// Checks that runs write nothing if they end before the first line is due, so that the tables of
/// commands with short runs contain no progress lines.
#[test]
fn runs_that_end_before_a_line_is_due_write_none() {
    let written = Written::default();
    let mut bar = ProgressBar::lines(written.clone(), Duration::from_secs(30)).over_runs(2);
    let began = Instant::now();
    for (seconds, event) in [
        (0.0, start(None)),
        (1.0, batch(0)),
        (2.0, end()),
        (3.0, start(None)),
        (4.0, batch(0)),
        (5.0, end()),
    ] {
        bar.follow(&event, began + Duration::from_secs_f64(seconds));
    }
    assert_eq!(written.text(), "");
}

#[test]
fn validation_does_not_lower_the_rate_but_is_time_that_passes() {
    let mut progress = RunProgress::default();
    let began = Instant::now();
    let at = |seconds: f64| began + Duration::from_secs_f64(seconds);
    progress.follow(&start(None), at(0.0));
    for place in 0..50 {
        progress.follow(&batch(place), at(0.1 * (place + 1) as f64));
    }
    let end = EpochEnd {
        epoch: 0,
        global_step: 50,
        lr: 0.1,
        train: Vec::new(),
        val: vec![logged("val_acc", 0.5, true)],
        train_seconds: 5.0,
        val_seconds: 95.0,
    };
    progress.follow(&Event::EpochEnd(end), at(100.0));
    progress.follow(&batch(50), at(100.1));
    progress.follow(&batch(51), at(100.2));
    let text = progress.text(at(100.2));
    // The first 26 % of the run took 100.2 s, so the remaining 74 % are expected to take 285 s.
    assert!(text.contains("left 00:04:45"), "{text}");
    assert!(text.contains("val_acc 0.5000"), "{text}");
    // The rate is 10 steps per second before and after the validation.
    assert!(text.contains("10.0 steps/s  80.0 examples/s"), "{text}");
}

#[test]
fn a_resumed_run_begins_where_it_stopped() {
    let mut progress = RunProgress::default();
    let began = Instant::now();
    progress.follow(&start(Some(Position { epoch: 2, batch: 0 })), began);
    assert_eq!(progress.done(), 0.5);
    for place in 100..110 {
        let seconds = 0.5 * (place - 99) as f64;
        progress.follow(&batch(place), began + Duration::from_secs_f64(seconds));
    }
    let text = progress.text(began + Duration::from_secs_f64(5.0));
    assert!(text.contains("step 110  2.00 steps/s  16.0 examples/s  left 00:00:45"), "{text}");
}

/// A terminal for tests. It keeps the text and counts how often the bar was drawn.
#[derive(Debug, Default)]
struct Screen {
    drawn: AtomicUsize,
    text: Mutex<String>,
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        120
    }

    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.text.lock().expect("a text").push_str(text);
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.text.lock().expect("a text").clear();
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.drawn.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Debug)]
struct Shared(Arc<Screen>);

macro_rules! shared {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        impl TermLike for Shared {
            fn width(&self) -> u16 {
                self.0.width()
            }

            $(fn $name(&self, $($argument: $type),*) -> io::Result<()> {
                self.0.$name($($argument),*)
            })*
        }
    };
}

shared! {
    move_cursor_up(n: usize);
    move_cursor_down(n: usize);
    move_cursor_right(n: usize);
    move_cursor_left(n: usize);
    write_line(text: &str);
    write_str(text: &str);
    clear_line();
    flush();
}

/// Checks the drawing rate: for 200 batches within two seconds, the bar is drawn 10 times a second,
/// once at the start of the run, and once at its end.
#[test]
fn it_is_drawn_at_most_ten_times_a_second() {
    let screen = Arc::new(Screen::default());
    let mut bar = ProgressBar::on(ProgressDrawTarget::term_like(Box::new(Shared(screen.clone()))));
    let began = Instant::now();
    let at = |milliseconds| began + Duration::from_millis(milliseconds);
    bar.follow(&start(None), at(0));
    let before = screen.drawn.load(Ordering::Relaxed);
    for place in 0..200 {
        bar.follow(&batch(place), at(10 * (place.cast_unsigned() + 1)));
    }
    let drawn = screen.drawn.load(Ordering::Relaxed) - before;
    assert!((15..=20).contains(&drawn), "{drawn}");
    bar.follow(&end(), at(2001));
    let text = screen.text.lock().expect("a text").clone();
    assert!(text.contains("100%") && text.contains("epoch 4/4  batch 50/50  step 200"), "{text}");
}
