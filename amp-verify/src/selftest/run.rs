use std::{sync::Arc, time::Instant};

use amp_core::{Error, Result};

use super::{Fate, Fault, Report, SelftestArgs, report::is_red};
use crate::{
    gate::{self, Plan, Pool, Subject, Tier},
    golden,
    registry::{Model, Registry},
};

/// Seeds of the unchanged runs begin here, away from every other.
const FRESH: u64 = 10_000;

/// Injects every fault and repeats unchanged runs with fresh seeds.
///
/// # Errors
/// When a fault's name is unknown or the device is missing.
pub fn run(registry: &Registry, args: &SelftestArgs) -> Result<Report> {
    let started = Instant::now();
    let faults = chosen(&args.fault)?;
    let mut pool = gate::pool(registry, &args.device, args.processes, None)?;
    let (mut plans, mut left_out) = (Vec::new(), Vec::new());
    for fault in faults {
        match (fault.subject(registry), fault.needs()) {
            (Some(model), _) => {
                plans.push((fault, Plan { fault: Some(fault), ..plan(registry, args, model)? }));
            }
            (None, needs) => left_out.push(format!(
                "{}: no model says that it reveals this; it takes {}",
                fault.about(),
                needs.unwrap_or("a model")
            )),
        }
    }
    let fates = plans.iter().map(|(fault, plan)| fate(plan, *fault, &mut pool));
    let fates = fates.collect::<Result<Vec<_>>>()?;
    let models: Vec<_> = registry.models().collect();
    let (mut false_alarms, mut cells, mut inconclusive) = (Vec::new(), 0, 0);
    for index in 0..args.repetitions {
        // Each model in turn: twenty repetitions see every one.
        let model = models[index as usize % models.len()];
        let mut plan = plan(registry, args, model)?;
        plan.first_seed = FRESH + 100 * index;
        let report = gate::run(&plan, &mut pool)?;
        for cell in report.models.iter().flat_map(|model| &model.cells) {
            cells += 1;
            if is_red(cell.status) {
                let (precision, seed) = (cell.precision, plan.first_seed);
                false_alarms.push(format!(
                    "{} under {precision}, seeds from {seed}: {}",
                    model.name,
                    cell.note()
                ));
            } else if cell.status != gate::Status::Pass {
                inconclusive += 1;
            }
        }
    }
    Ok(Report {
        faults: fates,
        left_out,
        repetitions: args.repetitions,
        cells,
        false_alarms,
        inconclusive,
        nan_golden_refused: golden::refuses_not_a_number(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn chosen(names: &[String]) -> Result<Vec<Fault>> {
    if names.is_empty() {
        return Ok(Fault::ALL.to_vec());
    }
    let parse = |name: &String| {
        serde_json::from_value(serde_json::Value::String(name.clone()))
            .map_err(|error| Error::config(format!("fault: {error}")))
    };
    names.iter().map(parse).collect()
}

fn plan(registry: &Registry, args: &SelftestArgs, model: &Arc<Model>) -> Result<Plan> {
    let (first, most) = Tier::Quick.seeds();
    Ok(Plan {
        registry: registry.clone(),
        models: vec![Subject::new(registry, model)?],
        tier: Tier::Quick,
        precisions: Tier::Quick.precisions().to_vec(),
        first,
        most,
        first_seed: 42,
        alpha: 0.05,
        equivalence: false,
        device: args.device.clone(),
        tf32: false,
        deterministic: false,
        goldens: None,
        islands: Default::default(),
        diagnosed: 0,
        fault: None,
    })
}

/// What the gate says of a fault.
fn fate(plan: &Plan, fault: Fault, pool: &mut Pool) -> Result<Fate> {
    let report = gate::run(plan, pool)?;
    let cells = report.models.iter().flat_map(|model| &model.cells);
    let red: Vec<_> = cells.filter(|cell| is_red(cell.status)).collect();
    Ok(Fate {
        fault,
        model: plan.models.iter().map(|model| model.name().to_owned()).collect(),
        caught_under: red.iter().map(|cell| cell.precision.to_string()).collect(),
        said: red.first().map(|cell| cell.note()).unwrap_or_default(),
    })
}
