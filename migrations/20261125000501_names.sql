-- A new column may have any name, also that of a variable in one of our functions: `scene` on
-- video_scenarios, `price` on user_credits. Then the name would be ambiguous and the function fail
-- (42702). The variable is meant, always; every later function says so itself.

alter table vidgen.settings alter column schema_version set default '20261125000501';
update vidgen.settings set schema_version = '20261125000501';

do $$
declare
  ours record;
begin
  for ours in
    select pg_get_functiondef(p.oid) as definition
      from pg_catalog.pg_proc as p
      join pg_catalog.pg_language as l on l.oid = p.prolang
     where p.pronamespace = 'vidgen'::regnamespace and l.lanname = 'plpgsql'
       and p.prosrc not like '%#variable_conflict %'
       -- An application may have replaced these three; what is ours of them says so already.
       and p.proname not in ('hold_credits', 'settle_credits', 'release_credits')
       and pg_has_role(p.proowner, 'usage')
  loop
    execute regexp_replace(
      ours.definition, 'AS (\$\w*\$)', E'AS \\1\n#variable_conflict use_variable'
    );
  end loop;
end
$$;

-- In a SQL function it is the column that is meant: there the parameters say whose they are.
create or replace function vidgen.count_slots(of_provider text, of_key text, of_model text)
returns integer
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  select count(*)::integer
    from vidgen.slots as s
   where s.provider = count_slots.of_provider and s.key_fingerprint = count_slots.of_key
     and s.model = count_slots.of_model
$$;
