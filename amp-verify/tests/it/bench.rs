//! The benchmark's arithmetic, its turns, the peers' protocol and what it refuses.

use std::{cell::Cell, fs, path::Path, time::Duration};

use amp_core::{Error, Result, precision::Precision, tch::Device};
use amp_verify::bench::{
    clock::Clock,
    contest::{Chunk, Contestant, Engine, contest},
    peers::{self, Entry},
    statistics::{Spread, paired_ratio},
    target::{Goal, Outcome, Target, Unit},
    workload::{self, Size},
};
use rstest::rstest;
use tempfile::tempdir;

use crate::support::{amp, assert_refused};

#[test]
fn quartiles_are_those_of_the_definition() {
    // numpy.quantile([1, 2, 4, 8], [0.25, 0.5, 0.75]).
    let spread = Spread::of(&[8.0, 1.0, 4.0, 2.0]).expect("values");
    assert_eq!((spread.q1, spread.median, spread.q3), (1.75, 3.0, 5.0));
    assert_eq!(spread.relative(), 3.25 / 3.0);
    assert_eq!(Spread::of(&[]), None);
    // Of the pairs 2, 5 and 3, and not of the medians.
    assert_eq!(paired_ratio(&[2.0, 50.0, 9.0], &[1.0, 10.0, 3.0]), Some(3.0));
}

#[rstest]
#[case(Goal::AtLeast(2.0), Some(2.0), Outcome::Met)]
#[case(Goal::AtLeast(2.0), Some(1.99), Outcome::Missed)]
#[case(Goal::AtMost(0.6), Some(0.6), Outcome::Met)]
#[case(Goal::AtMost(0.6), Some(0.61), Outcome::Missed)]
#[case(Goal::Below(20.0), Some(20.0), Outcome::Missed)]
#[case(Goal::Below(20.0), Some(f64::NAN), Outcome::Missed)]
#[case(Goal::AtLeast(2.0), None, Outcome::NotMeasured)]
fn a_target_is_met_or_missed(
    #[case] goal: Goal,
    #[case] measured: Option<f64>,
    #[case] outcome: Outcome,
) {
    let target = Target::new("speed".to_owned(), goal, Unit::Times, measured);
    assert_eq!(target.outcome, outcome);
}

/// Each part takes ten seconds: of three that would end after 10, 20 and 30 seconds, two end within
/// 25, and the third is named. Without a limit all run.
#[test]
fn nothing_begins_that_would_end_too_late() {
    let run = |limit: Option<u64>| {
        let now = Cell::new(Duration::ZERO);
        let mut clock = Clock::new(limit.map(Duration::from_secs), || now.get());
        let ran: Vec<&str> = ["a", "b", "c"]
            .into_iter()
            .filter_map(|name| {
                clock.run(name, || {
                    now.set(now.get() + Duration::from_secs(10));
                    name
                })
            })
            .collect();
        (ran, clock.note())
    };
    let note = Some("left out, since the time limit is 25 s: c".to_owned());
    assert_eq!(run(Some(25)), (vec!["a", "b"], note));
    assert_eq!(run(Some(30)), (vec!["a", "b", "c"], None));
    assert_eq!(run(None), (vec!["a", "b", "c"], None));
}

/// Ten steps a chunk, of a second each; fails from some chunk on.
struct Fake<'a> {
    engine: Engine,
    chunks: usize,
    fails_at: usize,
    order: &'a std::cell::RefCell<Vec<Engine>>,
}

impl Contestant for Fake<'_> {
    fn engine(&self) -> Engine {
        self.engine
    }

    fn prepare(&mut self) -> Result<()> {
        match self.fails_at {
            0 => Err(Error::config("it cannot\nbegin")),
            _ => Ok(()),
        }
    }

    fn chunk(&mut self) -> Result<Chunk> {
        self.order.borrow_mut().push(self.engine);
        self.chunks += 1;
        if self.chunks >= self.fails_at {
            return Err(Error::config("it gave up"));
        }
        Ok(Chunk { steps: 10, seconds: 2.0, peak_memory_bytes: Some(self.chunks as u64) })
    }
}

#[test]
fn contestants_take_turns_and_one_that_fails_is_left_out() {
    let order = std::cell::RefCell::default();
    let fake = |engine, fails_at| -> Box<dyn Contestant + '_> {
        Box::new(Fake { engine, chunks: 0, fails_at, order: &order })
    };
    use Engine::{Eager, Graph, Lightning};
    let mut all = vec![fake(Eager, 9), fake(Graph, 2), fake(Lightning, 0)];
    let scores = contest(&mut all, 3);
    drop(all);
    assert_eq!(order.take(), [Eager, Graph, Graph, Eager, Eager], "back and forth");
    assert_eq!(scores[0].rates, [5.0; 3]);
    assert_eq!((scores[0].peak_memory_bytes, &scores[0].failure), (Some(3), &None));
    assert_eq!((scores[1].rates.len(), scores[1].failure.as_deref()), (1, Some("it gave up")));
    assert_eq!(scores[2].failure.as_deref(), Some("it cannot begin"));
}

/// A shell in Python's place, which speaks these lines.
fn shell(folder: &Path, lines: &str) -> std::path::PathBuf {
    let script = folder.join("peers.sh");
    fs::write(&script, lines).expect("the script can be written");
    script
}

#[test]
fn a_peer_is_asked_for_chunks() -> Result<()> {
    let folder = tempdir().expect("a folder");
    let script = shell(
        folder.path(),
        r#"
echo '{"versions": {"python": "3.12", "engine": "'$2'"}}'
while read -r line; do
    case $line in
    *prepare*) case $line in *precision-test*|*PrecisionTestModel*) echo '{"ready": true}';; *) echo '{"error": "no such model"}';; esac ;;
    *go*) echo '{"steps": 64, "seconds": 0.5, "peak_memory_bytes": null}' ;;
    *end*) echo '{"ended": true}' ;;
    esac
done
"#,
    );
    let mut notes = Vec::new();
    let (_python, mut peers) =
        peers::start(Path::new("/bin/sh"), Some(&script), Device::Cpu, &mut notes)?;
    assert_eq!(notes, Vec::<String>::new());
    assert_eq!(peers[0].versions["engine"], "lightning");
    let workload = workload::find("precision-test")?;
    let mut entry = Entry::new(&mut peers[0], workload, Precision::F32True, 64);
    entry.prepare()?;
    let chunk = entry.chunk()?;
    assert_eq!((chunk.steps, chunk.seconds, chunk.peak_memory_bytes), (64, 0.5, None));
    drop(entry);
    let mut refused = Entry::new(&mut peers[0], workload::find("demo")?, Precision::F32True, 64);
    let error = refused.prepare().expect_err("the peer refuses").to_string();
    assert_eq!(error, "no such model");
    Ok(())
}

#[rstest]
#[case::says_what_is_missing(
    "echo '{\"error\": \"python3 has no lightning\"}'",
    "python3 has no lightning"
)]
#[case::dies("exit 3", "ended without an answer")]
#[case::talks("echo hello", "an answer that was not expected")]
fn a_peer_that_cannot_is_noted_once(#[case] lines: &str, #[case] why: &str) -> Result<()> {
    let folder = tempdir().expect("a folder");
    let script = shell(folder.path(), lines);
    let mut notes = Vec::new();
    let (_python, peers) =
        peers::start(Path::new("/bin/sh"), Some(&script), Device::Cpu, &mut notes)?;
    assert!(peers.is_empty());
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].starts_with("not measured: lightning"), "{notes:?}");
    assert!(notes[0].contains(why), "{notes:?}");
    Ok(())
}

/// 6·N·(512·1024 + 1024² + 1024·512 + 512·10): two for each weight of a matrix forward, four back.
#[test]
fn operations_are_counted_from_the_matrices() -> Result<()> {
    let demo = workload::find("demo")?;
    let weights = 512 * 1024 + 1024 * 1024 + 1024 * 512 + 512 * 10;
    let operations = demo.matrix_operations(demo.build(Size::Full)?.as_ref());
    assert_eq!(operations, 6.0 * 128.0 * f64::from(weights));
    Ok(())
}

#[rstest]
#[case(&["--workload", "nothing"], "unknown workload `nothing`")]
#[case(&["--rounds", "0"], "rounds 0")]
#[case(&["--steps", "0"], "steps 0")]
#[case(&["--time-limit", "0"], "time-limit 0")]
#[case(&["--feed-gb", "-1"], "feed-gb -1")]
#[case(&["--peers", "--peers-script", "nowhere.py"], "nowhere.py: there is no such script")]
fn what_cannot_be_measured_is_refused(#[case] arguments: &[&str], #[case] why: &str) {
    let folder = tempdir().expect("a folder");
    let mut command = amp(folder.path());
    command.args(["bench", "--device", "cpu", "--json", "bench.json"]).args(arguments);
    assert_refused(&mut command, folder.path(), why);
}
