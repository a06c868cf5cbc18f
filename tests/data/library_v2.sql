BEGIN TRANSACTION;
CREATE TABLE attempts (
        repair TEXT NOT NULL REFERENCES repairs (id) DEFERRABLE INITIALLY DEFERRED,
        number BIGINT NOT NULL,
        position BIGINT NOT NULL,
        predictor TEXT NOT NULL,
        verdict TEXT NOT NULL,
        feedback TEXT,
        regenerated TEXT,
        rephrased TEXT,
        reward DOUBLE PRECISION,
        trajectory TEXT REFERENCES trajectories (id) DEFERRABLE INITIALLY DEFERRED,
        detail TEXT NOT NULL,
        calls BIGINT NOT NULL,
        prompt_tokens BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL,
        PRIMARY KEY (repair, number)
    );
INSERT INTO "attempts" VALUES('1822bc761840481d13d18d6807148178',0,0,'doubler','repaired','"double the number"','{"doubled": "(corrected) 6"}','{"doubled": "6"}',1.0,'29ab34692e80297cde44bec0b626c3f0','""',3,528,36);
INSERT INTO "attempts" VALUES('c07a9237864369d2103168d6984ff7b5',0,0,'doubler','repaired','"double the number"','{"doubled": "(corrected) 2"}','{"doubled": "2"}',1.0,'a3aa0ee29f8732620a9b9fc1be672676','""',3,528,36);
INSERT INTO "attempts" VALUES('2c061de868fba46048e2d3140ab92c51',0,0,'doubler','repaired','"double the number"','{"doubled": "(corrected) 10"}','{"doubled": "10"}',1.0,'6842d8041c6c058bd168d473a2f9737d','""',3,528,36);
CREATE TABLE examples (
        key TEXT PRIMARY KEY,
        inputs TEXT NOT NULL,
        labels TEXT NOT NULL
    );
INSERT INTO "examples" VALUES('e5ebe6e31313dedf1fb763730009dc00','{"number": 0}','{"answer": "ans:0"}');
INSERT INTO "examples" VALUES('ee550a693999201b4dbe3bdbe34b5a40','{"number": 1}','{"answer": "ans:2"}');
INSERT INTO "examples" VALUES('66dd9f7adae352b3686754ab04646122','{"number": 3}','{"answer": "ans:6"}');
INSERT INTO "examples" VALUES('21374453376d12b6fea1a995608ba49d','{"number": 2}','{"answer": "ans:4"}');
INSERT INTO "examples" VALUES('e2f77b2b7679e29aff67c817209bf6a7','{"number": 5}','{"answer": "ans:10"}');
INSERT INTO "examples" VALUES('1b28176c93f40add9f95a717fff9e029','{"number": 4}','{"answer": "ans:8"}');
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "meta" VALUES('created_by','sirius_dspy');
INSERT INTO "meta" VALUES('created_at','2026-11-26T15:01:42.084839+00:00');
INSERT INTO "meta" VALUES('library_id','a2ce89f90f52401a94dac5b2d2a3afe2');
INSERT INTO "meta" VALUES('schema_version','2');
CREATE TABLE repairs (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        parent TEXT NOT NULL REFERENCES trajectories (id) DEFERRABLE INITIALLY DEFERRED,
        run TEXT NOT NULL,
        iteration BIGINT NOT NULL,
        seconds DOUBLE PRECISION NOT NULL
    );
INSERT INTO "repairs" VALUES(1,'1822bc761840481d13d18d6807148178','7f59f0362f4db847630270e1945f73a9','551cefb0dc49',1,0.0);
INSERT INTO "repairs" VALUES(2,'c07a9237864369d2103168d6984ff7b5','df8d93437594135276651600a75a2ced','551cefb0dc49',1,0.0);
INSERT INTO "repairs" VALUES(3,'2c061de868fba46048e2d3140ab92c51','b787edc6304865c6f9a0fddc2254f784','551cefb0dc49',1,0.0);
CREATE TABLE steps (
        trajectory TEXT NOT NULL REFERENCES trajectories (id) DEFERRABLE INITIALLY DEFERRED,
        position BIGINT NOT NULL,
        predictor TEXT NOT NULL,
        occurrence BIGINT NOT NULL,
        inputs TEXT NOT NULL,
        outputs TEXT,
        others TEXT NOT NULL,
        lm TEXT NOT NULL,
        failure TEXT,
        source TEXT NOT NULL,
        calls BIGINT NOT NULL,
        prompt_tokens BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL,
        seconds DOUBLE PRECISION NOT NULL,
        started BIGINT NOT NULL,
        ended BIGINT NOT NULL,
        num_demos BIGINT NOT NULL,
        PRIMARY KEY (trajectory, position)
    );
INSERT INTO "steps" VALUES('ebb07e1c44e75bba16f2b0d1dfddfe51',0,'doubler',0,'{"number": 0}','{"doubled": "0"}','[]','toy/base',NULL,'live',1,95,11,1.01473360000454704277e-02,0,1,0);
INSERT INTO "steps" VALUES('ebb07e1c44e75bba16f2b0d1dfddfe51',1,'writer.predict',0,'{"doubled": "0"}','{"reasoning": "only the format is missing", "answer": "ans:0"}','[]','toy/base',NULL,'live',1,110,21,2.27363700014393543824e-03,2,3,0);
INSERT INTO "steps" VALUES('9a64c3209bcd0b37ea943e62a4aacb85',0,'doubler',0,'{"number": 1}','{"doubled": "no idea"}','[]','toy/base',NULL,'live',1,95,12,6.18073299938259879127e-03,0,1,0);
INSERT INTO "steps" VALUES('9a64c3209bcd0b37ea943e62a4aacb85',1,'writer.predict',0,'{"doubled": "no idea"}','{"reasoning": "only the format is missing", "answer": "ans:no idea"}','[]','toy/base',NULL,'live',1,111,22,3.96603300032438710331e-03,2,3,0);
INSERT INTO "steps" VALUES('df8d93437594135276651600a75a2ced',0,'doubler',0,'{"number": 1}','{"doubled": "no idea"}','[]','toy/base',NULL,'live',1,95,12,6.07304300046962453052e-03,0,1,0);
INSERT INTO "steps" VALUES('df8d93437594135276651600a75a2ced',1,'writer.predict',0,'{"doubled": "no idea"}','{"reasoning": "only the format is missing", "answer": "ans:no idea"}','[]','toy/base',NULL,'live',1,111,22,4.00207700022292556241e-03,2,3,0);
INSERT INTO "steps" VALUES('ea9e52ba924b5d84a612cdfae023a625',0,'doubler',0,'{"number": 0}','{"doubled": "0"}','[]','toy/base',NULL,'live',1,95,11,5.94851270006984123028e-02,0,1,0);
INSERT INTO "steps" VALUES('ea9e52ba924b5d84a612cdfae023a625',1,'writer.predict',0,'{"doubled": "0"}','{"reasoning": "only the format is missing", "answer": "ans:0"}','[]','toy/base',NULL,'live',1,110,21,1.99847339999905670993e-02,2,3,0);
INSERT INTO "steps" VALUES('7f59f0362f4db847630270e1945f73a9',0,'doubler',0,'{"number": 3}','{"doubled": "no idea"}','[]','toy/base',NULL,'live',1,95,12,1.94055270003445912152e-02,0,1,0);
INSERT INTO "steps" VALUES('7f59f0362f4db847630270e1945f73a9',1,'writer.predict',0,'{"doubled": "no idea"}','{"reasoning": "only the format is missing", "answer": "ans:no idea"}','[]','toy/base',NULL,'live',1,111,22,0.0396620929996061,2,3,0);
INSERT INTO "steps" VALUES('89fdd1c45e16b97e97265fea33743b00',0,'doubler',0,'{"number": 2}','{"doubled": "4"}','[]','toy/base',NULL,'live',1,95,11,0.0781754749996253,0,1,0);
INSERT INTO "steps" VALUES('89fdd1c45e16b97e97265fea33743b00',1,'writer.predict',0,'{"doubled": "4"}','{"reasoning": "only the format is missing", "answer": "ans:4"}','[]','toy/base',NULL,'live',1,110,21,8.20703299996239366009e-03,2,3,0);
INSERT INTO "steps" VALUES('b787edc6304865c6f9a0fddc2254f784',0,'doubler',0,'{"number": 5}','{"doubled": "no idea"}','[]','toy/base',NULL,'live',1,95,12,3.87902020002002245746e-02,0,1,0);
INSERT INTO "steps" VALUES('b787edc6304865c6f9a0fddc2254f784',1,'writer.predict',0,'{"doubled": "no idea"}','{"reasoning": "only the format is missing", "answer": "ans:no idea"}','[]','toy/base',NULL,'live',1,111,22,2.27319019995775306597e-02,2,3,0);
INSERT INTO "steps" VALUES('e61d766ab76c3c72ba05c066d921e257',0,'doubler',0,'{"number": 4}','{"doubled": "8"}','[]','toy/base',NULL,'live',1,95,11,1.02588210002068080939e-02,0,1,0);
INSERT INTO "steps" VALUES('e61d766ab76c3c72ba05c066d921e257',1,'writer.predict',0,'{"doubled": "8"}','{"reasoning": "only the format is missing", "answer": "ans:8"}','[]','toy/base',NULL,'live',1,110,21,3.5197420999793394003e-02,2,3,0);
INSERT INTO "steps" VALUES('f02059c13822b5b16d7b4a5caca41d9a',0,'doubler',0,'{"number": 0}','{"doubled": "0"}','[]','toy/base',NULL,'live',1,95,11,3.49675809993641451001e-02,0,1,0);
INSERT INTO "steps" VALUES('f02059c13822b5b16d7b4a5caca41d9a',1,'writer.predict',0,'{"doubled": "0"}','{"reasoning": "only the format is missing", "answer": "ans:0"}','[]','toy/base',NULL,'live',1,110,21,4.11009930003274348564e-02,2,3,0);
INSERT INTO "steps" VALUES('4da36114f17261ca2b8f588131957d76',0,'doubler',0,'{"number": 1}','{"doubled": "no idea"}','[]','toy/base',NULL,'live',1,95,12,2.13234370003192452713e-02,0,1,0);
INSERT INTO "steps" VALUES('4da36114f17261ca2b8f588131957d76',1,'writer.predict',0,'{"doubled": "no idea"}','{"reasoning": "only the format is missing", "answer": "ans:no idea"}','[]','toy/base',NULL,'live',1,111,22,1.08976179999444866552e-02,2,3,0);
INSERT INTO "steps" VALUES('69a54067a351eb29eed1f18ce7e44aac',0,'doubler',0,'{"number": 3}','{"doubled": "no idea"}','[]','toy/base',NULL,'live',1,95,12,2.49235880000924225896e-02,0,1,0);
INSERT INTO "steps" VALUES('69a54067a351eb29eed1f18ce7e44aac',1,'writer.predict',0,'{"doubled": "no idea"}','{"reasoning": "only the format is missing", "answer": "ans:no idea"}','[]','toy/base',NULL,'live',1,111,22,4.68468320004831184633e-02,2,3,0);
INSERT INTO "steps" VALUES('237cd2d7b50618d705c256916c2bbb0d',0,'doubler',0,'{"number": 2}','{"doubled": "4"}','[]','toy/base',NULL,'live',1,95,11,2.37703289994897204451e-02,0,1,0);
INSERT INTO "steps" VALUES('237cd2d7b50618d705c256916c2bbb0d',1,'writer.predict',0,'{"doubled": "4"}','{"reasoning": "only the format is missing", "answer": "ans:4"}','[]','toy/base',NULL,'live',1,110,21,2.63966899910883512347e-03,2,3,0);
INSERT INTO "steps" VALUES('50e87427566d2f45b2b812aec759fd3d',0,'doubler',0,'{"number": 4}','{"doubled": "8"}','[]','toy/base',NULL,'live',1,95,11,1.94054160001542186364e-02,0,1,0);
INSERT INTO "steps" VALUES('50e87427566d2f45b2b812aec759fd3d',1,'writer.predict',0,'{"doubled": "8"}','{"reasoning": "only the format is missing", "answer": "ans:8"}','[]','toy/base',NULL,'live',1,110,21,2.09986449999632895924e-02,2,3,0);
INSERT INTO "steps" VALUES('fc071786842036ee258b418506d20372',0,'doubler',0,'{"number": 5}','{"doubled": "no idea"}','[]','toy/base',NULL,'live',1,95,12,3.12042180003118119202e-02,0,1,0);
INSERT INTO "steps" VALUES('fc071786842036ee258b418506d20372',1,'writer.predict',0,'{"doubled": "no idea"}','{"reasoning": "only the format is missing", "answer": "ans:no idea"}','[]','toy/base',NULL,'live',1,111,22,1.58405599995603552088e-03,2,3,0);
INSERT INTO "steps" VALUES('29ab34692e80297cde44bec0b626c3f0',0,'doubler',0,'{"number": 3}','{"doubled": "6"}','[]','toy/base',NULL,'edited',0,0,0,3.62230002792784944176e-05,0,1,0);
INSERT INTO "steps" VALUES('29ab34692e80297cde44bec0b626c3f0',1,'writer.predict',0,'{"doubled": "6"}','{"reasoning": "only the format is missing", "answer": "ans:6"}','[]','toy/base',NULL,'live',1,110,21,2.93197179998969659209e-02,2,3,0);
INSERT INTO "steps" VALUES('a3aa0ee29f8732620a9b9fc1be672676',0,'doubler',0,'{"number": 1}','{"doubled": "2"}','[]','toy/base',NULL,'edited',0,0,0,3.07660002363263629376e-05,0,1,0);
INSERT INTO "steps" VALUES('a3aa0ee29f8732620a9b9fc1be672676',1,'writer.predict',0,'{"doubled": "2"}','{"reasoning": "only the format is missing", "answer": "ans:2"}','[]','toy/base',NULL,'live',1,110,21,4.29313129998263320885e-02,2,3,0);
INSERT INTO "steps" VALUES('6842d8041c6c058bd168d473a2f9737d',0,'doubler',0,'{"number": 5}','{"doubled": "10"}','[]','toy/base',NULL,'edited',0,0,0,3.42310004270984791219e-05,0,1,0);
INSERT INTO "steps" VALUES('6842d8041c6c058bd168d473a2f9737d',1,'writer.predict',0,'{"doubled": "10"}','{"reasoning": "only the format is missing", "answer": "ans:10"}','[]','toy/base',NULL,'live',1,110,21,9.23085000067658256739e-03,2,3,0);
INSERT INTO "steps" VALUES('aad04707d564dedd0d75af3a8672d1de',0,'doubler',0,'{"number": 0}','{"doubled": "0"}','[]','toy/base+6af397e27384db0b',NULL,'live',1,95,11,0.00689771399993333,0,1,0);
INSERT INTO "steps" VALUES('aad04707d564dedd0d75af3a8672d1de',1,'writer.predict',0,'{"doubled": "0"}','{"reasoning": "only the format is missing", "answer": "ans:0"}','[]','toy/base+dfd1732b21e2efcd',NULL,'live',1,110,21,9.51218999944103416055e-04,2,3,0);
INSERT INTO "steps" VALUES('373650dc5afca41781a0f93e95fd596f',0,'doubler',0,'{"number": 1}','{"doubled": "2"}','[]','toy/base+6af397e27384db0b',NULL,'live',1,95,11,1.40108880004845559597e-02,0,1,0);
INSERT INTO "steps" VALUES('373650dc5afca41781a0f93e95fd596f',1,'writer.predict',0,'{"doubled": "2"}','{"reasoning": "only the format is missing", "answer": "ans:2"}','[]','toy/base+dfd1732b21e2efcd',NULL,'live',1,110,21,4.14934399941557785496e-03,2,3,0);
CREATE TABLE trajectories (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        run TEXT NOT NULL,
        iteration BIGINT NOT NULL,
        sample BIGINT NOT NULL,
        seed BIGINT NOT NULL,
        origin TEXT NOT NULL,
        parent TEXT REFERENCES trajectories (id) DEFERRABLE INITIALLY DEFERRED,
        edited BIGINT,
        example_key TEXT NOT NULL,
        program TEXT NOT NULL,
        reward DOUBLE PRECISION NOT NULL,
        reward_json TEXT NOT NULL,
        rewards TEXT NOT NULL,
        prediction TEXT,
        failure TEXT,
        seconds DOUBLE PRECISION NOT NULL,
        created_at TEXT NOT NULL,
        calls BIGINT NOT NULL,
        prompt_tokens BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL
    );
INSERT INTO "trajectories" VALUES(1,'ebb07e1c44e75bba16f2b0d1dfddfe51','551cefb0dc49',0,0,0,'validation',NULL,NULL,'e5ebe6e31313dedf1fb763730009dc00','fb0f699aa943c5c23a50992e527a8e50',1.0,'1.0','{}','{"reasoning": "only the format is missing", "answer": "ans:0"}',NULL,1.3106678999974974431e-02,'2026-11-26T15:01:42.188452+00:00',2,205,32);
INSERT INTO "trajectories" VALUES(2,'9a64c3209bcd0b37ea943e62a4aacb85','551cefb0dc49',0,0,0,'validation',NULL,NULL,'ee550a693999201b4dbe3bdbe34b5a40','fb0f699aa943c5c23a50992e527a8e50',0.0,'0.0','{}','{"reasoning": "only the format is missing", "answer": "ans:no idea"}',NULL,1.06853430006594862788e-02,'2026-11-26T15:01:42.191208+00:00',2,206,34);
INSERT INTO "trajectories" VALUES(3,'df8d93437594135276651600a75a2ced','551cefb0dc49',1,0,0,'rollout',NULL,NULL,'ee550a693999201b4dbe3bdbe34b5a40','fb0f699aa943c5c23a50992e527a8e50',0.0,'0.0','{}','{"reasoning": "only the format is missing", "answer": "ans:no idea"}',NULL,1.07712299995910143479e-02,'2026-11-26T15:01:42.284378+00:00',2,206,34);
INSERT INTO "trajectories" VALUES(4,'ea9e52ba924b5d84a612cdfae023a625','551cefb0dc49',1,0,0,'rollout',NULL,NULL,'e5ebe6e31313dedf1fb763730009dc00','fb0f699aa943c5c23a50992e527a8e50',1.0,'1.0','{}','{"reasoning": "only the format is missing", "answer": "ans:0"}',NULL,0.0802073040003961,'2026-11-26T15:01:42.303381+00:00',2,205,32);
INSERT INTO "trajectories" VALUES(5,'7f59f0362f4db847630270e1945f73a9','551cefb0dc49',1,0,0,'rollout',NULL,NULL,'66dd9f7adae352b3686754ab04646122','fb0f699aa943c5c23a50992e527a8e50',0.0,'0.0','{}','{"reasoning": "only the format is missing", "answer": "ans:no idea"}',NULL,5.9688819000257353764e-02,'2026-11-26T15:01:42.347033+00:00',2,206,34);
INSERT INTO "trajectories" VALUES(6,'89fdd1c45e16b97e97265fea33743b00','551cefb0dc49',1,0,0,'rollout',NULL,NULL,'21374453376d12b6fea1a995608ba49d','fb0f699aa943c5c23a50992e527a8e50',1.0,'1.0','{}','{"reasoning": "only the format is missing", "answer": "ans:4"}',NULL,8.69654319994879188016e-02,'2026-11-26T15:01:42.371777+00:00',2,205,32);
INSERT INTO "trajectories" VALUES(7,'b787edc6304865c6f9a0fddc2254f784','551cefb0dc49',1,0,0,'rollout',NULL,NULL,'e2f77b2b7679e29aff67c817209bf6a7','fb0f699aa943c5c23a50992e527a8e50',0.0,'0.0','{}','{"reasoning": "only the format is missing", "answer": "ans:no idea"}',NULL,6.24782499999128049239e-02,'2026-11-26T15:01:42.366545+00:00',2,206,34);
INSERT INTO "trajectories" VALUES(8,'e61d766ab76c3c72ba05c066d921e257','551cefb0dc49',1,0,0,'rollout',NULL,NULL,'1b28176c93f40add9f95a717fff9e029','fb0f699aa943c5c23a50992e527a8e50',1.0,'1.0','{}','{"reasoning": "only the format is missing", "answer": "ans:8"}',NULL,4.6111813999232253991e-02,'2026-11-26T15:01:42.334732+00:00',2,205,32);
INSERT INTO "trajectories" VALUES(9,'f02059c13822b5b16d7b4a5caca41d9a','551cefb0dc49',1,1,0,'rollout',NULL,NULL,'e5ebe6e31313dedf1fb763730009dc00','fb0f699aa943c5c23a50992e527a8e50',1.0,'1.0','{}','{"reasoning": "only the format is missing", "answer": "ans:0"}',NULL,0.0767343700008496,'2026-11-26T15:01:42.411958+00:00',2,205,32);
INSERT INTO "trajectories" VALUES(10,'4da36114f17261ca2b8f588131957d76','551cefb0dc49',1,1,0,'rollout',NULL,NULL,'ee550a693999201b4dbe3bdbe34b5a40','fb0f699aa943c5c23a50992e527a8e50',0.0,'0.0','{}','{"reasoning": "only the format is missing", "answer": "ans:no idea"}',NULL,3.27279739994992269203e-02,'2026-11-26T15:01:42.380146+00:00',2,206,34);
INSERT INTO "trajectories" VALUES(11,'69a54067a351eb29eed1f18ce7e44aac','551cefb0dc49',1,1,0,'rollout',NULL,NULL,'66dd9f7adae352b3686754ab04646122','fb0f699aa943c5c23a50992e527a8e50',0.0,'0.0','{}','{"reasoning": "only the format is missing", "answer": "ans:no idea"}',NULL,7.2531095999693206977e-02,'2026-11-26T15:01:42.451392+00:00',2,206,34);
INSERT INTO "trajectories" VALUES(12,'237cd2d7b50618d705c256916c2bbb0d','551cefb0dc49',1,1,0,'rollout',NULL,NULL,'21374453376d12b6fea1a995608ba49d','fb0f699aa943c5c23a50992e527a8e50',1.0,'1.0','{}','{"reasoning": "only the format is missing", "answer": "ans:4"}',NULL,2.71607300001051044091e-02,'2026-11-26T15:01:42.403173+00:00',2,205,32);
INSERT INTO "trajectories" VALUES(13,'50e87427566d2f45b2b812aec759fd3d','551cefb0dc49',1,1,0,'rollout',NULL,NULL,'1b28176c93f40add9f95a717fff9e029','fb0f699aa943c5c23a50992e527a8e50',1.0,'1.0','{}','{"reasoning": "only the format is missing", "answer": "ans:8"}',NULL,4.11255600001823040656e-02,'2026-11-26T15:01:42.504466+00:00',2,205,32);
INSERT INTO "trajectories" VALUES(14,'fc071786842036ee258b418506d20372','551cefb0dc49',1,1,0,'rollout',NULL,NULL,'e2f77b2b7679e29aff67c817209bf6a7','fb0f699aa943c5c23a50992e527a8e50',0.0,'0.0','{}','{"reasoning": "only the format is missing", "answer": "ans:no idea"}',NULL,3.33354439999311580322e-02,'2026-11-26T15:01:42.504971+00:00',2,206,34);
INSERT INTO "trajectories" VALUES(15,'29ab34692e80297cde44bec0b626c3f0','551cefb0dc49',1,0,0,'repair','7f59f0362f4db847630270e1945f73a9',0,'66dd9f7adae352b3686754ab04646122','fb0f699aa943c5c23a50992e527a8e50',1.0,'1.0','{}','{"reasoning": "only the format is missing", "answer": "ans:6"}',NULL,2.98741980004706420004e-02,'2026-11-26T15:01:42.670955+00:00',1,110,21);
INSERT INTO "trajectories" VALUES(16,'a3aa0ee29f8732620a9b9fc1be672676','551cefb0dc49',1,0,0,'repair','df8d93437594135276651600a75a2ced',0,'ee550a693999201b4dbe3bdbe34b5a40','fb0f699aa943c5c23a50992e527a8e50',1.0,'1.0','{}','{"reasoning": "only the format is missing", "answer": "ans:2"}',NULL,4.34450650000144378282e-02,'2026-11-26T15:01:42.695123+00:00',1,110,21);
INSERT INTO "trajectories" VALUES(17,'6842d8041c6c058bd168d473a2f9737d','551cefb0dc49',1,0,0,'repair','b787edc6304865c6f9a0fddc2254f784',0,'e2f77b2b7679e29aff67c817209bf6a7','fb0f699aa943c5c23a50992e527a8e50',1.0,'1.0','{}','{"reasoning": "only the format is missing", "answer": "ans:10"}',NULL,0.00979938199998287,'2026-11-26T15:01:42.679102+00:00',1,110,21);
INSERT INTO "trajectories" VALUES(18,'aad04707d564dedd0d75af3a8672d1de','551cefb0dc49',1,0,0,'validation',NULL,NULL,'e5ebe6e31313dedf1fb763730009dc00','fb0f699aa943c5c23a50992e527a8e50',1.0,'1.0','{}','{"reasoning": "only the format is missing", "answer": "ans:0"}',NULL,8.36104099926160415634e-03,'2026-11-26T15:01:42.875838+00:00',2,205,32);
INSERT INTO "trajectories" VALUES(19,'373650dc5afca41781a0f93e95fd596f','551cefb0dc49',1,0,0,'validation',NULL,NULL,'ee550a693999201b4dbe3bdbe34b5a40','fb0f699aa943c5c23a50992e527a8e50',1.0,'1.0','{}','{"reasoning": "only the format is missing", "answer": "ans:2"}',NULL,1.86004140005024964921e-02,'2026-11-26T15:01:42.887927+00:00',2,205,32);
CREATE INDEX trajectories_by_run ON trajectories (run, iteration, origin, number);
CREATE INDEX trajectories_by_example ON trajectories (example_key, number);
CREATE INDEX trajectories_by_parent ON trajectories (parent, number);
CREATE INDEX repairs_by_run ON repairs (run, iteration, number);
CREATE INDEX repairs_by_parent ON repairs (parent);
CREATE INDEX attempts_by_trajectory ON attempts (trajectory);
COMMIT;
